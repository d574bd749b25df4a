"""A run's state between two steps, out and in: what `Unlearner.save` writes and `Unlearner.restore` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearn_core.model.adapters import read_adapter, save_adapter
from unlearn_core.model.load import GENERATION
from unlearn_core.settings.errors import ConfigError, first_line

if TYPE_CHECKING:
    from unlearn_core.context import RunContext
    from unlearn_core.training.update import Update

STATE = "state.safetensors"
FACTS = "state.json"
METHOD_STATE = "method.safetensors"
SMALL = 4096  # numbers: what a method keeps to be asked by lies beside every adapter, its bulk in whole states alone


def save(context: RunContext, update: Update, state: Mapping[str, Any], folder: Path, whole: bool) -> None:
    """The adapter in PEFT's format; with `whole`, `state` (plain values) and every tensor that the next step needs."""
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(context.model, folder)
    if context.config.where.kind == "full":
        context.tokenizer.save_pretrained(folder)  # the folder is then a model of its own
        if context.loaded.generation_settings:  # those that answers here are made with are greedy, and not the model's
            (folder / GENERATION).write_text(context.loaded.generation_settings, encoding="utf-8")
    small = {name: value.contiguous() for name, value in context.method_state.items() if value.numel() <= SMALL}
    if small:
        save_file(small, folder / METHOD_STATE)
    if not whole:
        return
    tensors: dict[str, Tensor] = {"none": torch.zeros(1)}  # safetensors wants at least one
    for name, values in parts_of(context, update).items():
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in values.items()}
    model = {"model_fingerprint": context.loaded.fingerprint, "model_origin": context.loaded.origin}
    save_file(tensors, folder / STATE)
    (folder / FACTS).write_text(json.dumps({**state, **model}))


def parts_of(context: RunContext, update: Update) -> dict[str, dict[str, Tensor]]:
    """Every tensor of the state beside the adapter, by who has it."""
    parts = {"method": context.method_state, "mask": {} if context.mask is None else {"rows": context.mask}}
    for name, optimizer in update.optimizers().items():
        state = optimizer.state.get(context.adapter.values, {})
        parts[name] = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if update.rail:
        parts["rail"] = update.rail.tensors()
    return parts


def read_method_state(folder: Path) -> dict[str, Tensor]:
    """What a method needs to answer as it did at the step that was saved in `folder`. Empty where it needs nothing.

    Raises ConfigError where it cannot be read.
    """
    try:
        return load_file(folder / METHOD_STATE) if (folder / METHOD_STATE).is_file() else {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"What the method saved in {folder.name} cannot be read: {first_line(error)}") from None


def read_facts(context: RunContext, folder: Path) -> dict[str, Any]:
    """The plain values of a whole checkpoint.

    Raises ConfigError where they cannot be read, and for another model, tokenizer or starting adapter.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"The checkpoint {folder.name} cannot be read: {error}.") from None
    _check_origin(context, folder, facts)
    return facts


def restore(context: RunContext, update: Update, folder: Path) -> None:
    """Puts the tensors of a whole checkpoint back. Raises ConfigError where they cannot be read."""
    try:
        tensors = load_file(folder / STATE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"The checkpoint {folder.name} cannot be read: {error}.") from None
    read_adapter(context.model, folder)
    context.adapter.gather()
    for name, optimizer in update.optimizers().items():
        # The step count stays on the CPU, where torch's optimizers keep it.
        moments = {k: v if k == "step" else v.to(context.device) for k, v in part(tensors, name).items()}
        optimizer.state.clear()
        if moments:
            optimizer.state[context.adapter.values] = moments
    context.method_state = {key: value.to(context.device) for key, value in part(tensors, "method").items()}
    mask = part(tensors, "mask").get("rows")
    context.mask = None if mask is None else mask.to(context.device)
    if update.rail:
        update.rail.restore(part(tensors, "rail"))  # some of it is in double precision, which stays on the CPU


def _check_origin(context: RunContext, folder: Path, state: Mapping[str, Any]) -> None:
    """Raises ConfigError where a checkpoint is of another model, tokenizer or starting adapter."""
    loaded, model = context.loaded, context.config.model
    if state["model_fingerprint"] != loaded.fingerprint:
        raise ConfigError(f"The checkpoint {folder.name} was made with other weights than those of {model.source}.")
    made_with, here = state.get("model_origin", {}), loaded.origin
    others = {
        "tokenizer": f"another tokenizer than that of {model.source}",
        "adapter": f"another adapter than that of {model.adapter}",
        "earlier": f"other earlier adapters than {', '.join(model.earlier) or 'none'}",
    }
    for which, other in others.items():
        if made_with and made_with.get(which) != here.get(which):
            raise ConfigError(f"The checkpoint {folder.name} was made with {other}.")


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What one keeper had in the file, by its own names."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
