"""Heads and filters that matter to the target more than to retain texts may change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unlearn_core.masks.base import Mask
from unlearn_core.masks.shared.rows import (
    chosen,
    finite,
    losses,
    mask_of_adapter,
    mask_of_weights,
    masked_layers,
    outputs_of,
)
from unlearn_core.model.adapters import QUERY_AND_VALUE, kind

if TYPE_CHECKING:
    from unlearn_core.context import RunContext


class Structure(Mask):
    """Heads and filters that matter to the forget windows more than to as many retain windows (arXiv 2508.17233).

    Each gets a gate of 1, and its score is the mean of |d loss / d gate| over single forget windows, less that over
    single retain windows. Heads are ranked among heads and filters among filters, since a head's gate moves all its
    rows at once and would otherwise always come first. With where.kind full, what is no row of a linear layer
    (embeddings, norms, the output layer) is fixed.
    """

    label: ClassVar[str] = "heads and filters scored against retain texts"

    def choose(self, context: RunContext) -> Tensor:
        rows = structural_rows(context)
        return mask_of_weights(context, rows) if context.config.where.kind == "full" else mask_of_adapter(context, rows)


# Layers whose outputs are cut into heads, by their names; keys go with the queries and values that adapters look for.
HEADS = frozenset(name for family in QUERY_AND_VALUE for name in family) | {
    "k_proj", "key", "key_proj", "k", "wk", "k_lin",
}  # fmt: skip


HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size")  # how an attention layer calls the rows of one head


def structural_rows(context: RunContext) -> dict[str, Tensor]:
    """Of each layer the rows of the heads or filters that may change, (outputs,) bool."""
    layers = masked_layers(context)
    widths = {name: head_width(context.model, name, layer) for name, layer in layers.items()}
    about = context.windows.forget
    count = min(len(about), len(context.windows.retain))
    beside = random.Random(f"{context.config.seed} mask").sample(list(context.windows.retain), count)
    with gates_on(layers, widths) as gates:
        scores = gate_scores(gates, losses(context, about, "scoring heads and filters"))
        if beside:
            against = gate_scores(gates, losses(context, beside, "scoring heads and filters against retain"))
            scores = {name: score - against[name] for name, score in scores.items()}
    home = context.adapter.values.device
    scores = {name: finite(score, name).to(home) for name, score in scores.items()}
    picked: dict[str, Tensor] = {}
    for heads in (True, False):
        alike = {name: score for name, score in scores.items() if (widths[name] > 1) is heads}
        picked |= chosen(alike, context.config.where.share)
    return {name: picked[name].repeat_interleave(width) for name, width in widths.items()}


@contextmanager
def gates_on(layers: Mapping[str, nn.Module], widths: Mapping[str, int]) -> Iterator[dict[str, Tensor]]:
    """Within: every `widths[layer]` outputs of a layer are multiplied by one gate of its own, which is 1.

    The gates, (outputs / width,) in float32, are leaves: a loss has gradients by them, and is the same to the bit.
    """
    gates: dict[str, Tensor] = {}
    hooks = []

    def gate(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def multiply(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            return (output * gates[name][:, None].expand(-1, widths[name]).flatten()).to(output.dtype)

        return multiply

    try:
        for name, layer in layers.items():
            device = next(layer.parameters()).device
            gates[name] = torch.ones(outputs_of(layer) // widths[name], device=device, requires_grad=True)
            hooks.append(layer.register_forward_hook(gate(name)))
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def gate_scores(gates: Mapping[str, Tensor], losses: Iterator[Tensor]) -> dict[str, Tensor]:
    """The mean over the losses of |d loss / d gate|, by layer. A layer that nothing went through scores 0."""
    sums, count = {name: torch.zeros_like(gate) for name, gate in gates.items()}, 0
    for loss in losses:
        slopes = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
        for name, slope in zip(gates, slopes, strict=True):
            if slope is not None:
                sums[name] += slope.abs()
        count += 1
    return {name: total / max(1, count) for name, total in sums.items()}


def head_width(model: nn.Module, name: str, layer: nn.Module) -> int:
    """Rows of one head where a layer makes queries, keys or values (or all of them) for heads; else 1: a filter.

    Keys and values that several queries share (GQA) are heads as they are.
    """
    if kind(name) not in HEADS:
        return 1
    attention = model.get_submodule(name.rpartition(".")[0])
    widths = (getattr(attention, width, None) for width in HEAD_WIDTHS)
    width = next((width for width in widths if isinstance(width, int) and width > 0), 1)
    return width if outputs_of(layer) % width == 0 else 1


MASK = Structure
