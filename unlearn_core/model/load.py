"""A base model with its adapter, ready to be trained: load_model()."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peft import PeftModel
from torch import Tensor

from unlearn_core.model.adapters import (
    ADAPTER,
    adapted_layers,
    adapter_settings,
    adapters_of,
    add_beside,
    add_earlier,
    another_base,
    earlier_folders,
    kind,
    with_adapter,
)
from unlearn_core.model.loading import (
    context_limit,
    device_of,
    digest,
    dtype_of,
    fingerprint,
    folder_of,
    load_base,
    named,
    revision_of,
    tokenizer_fingerprint,
)
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.report import Report, silent
from unlearn_core.settings.sections import LoraSettings, ModelSettings

GENERATION = "generation_config.json"

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A base model with its adapter. `start`: the initial parameters, where the reference needs them."""

    model: Any  # a PeftModel, or the bare model where its own weights are trained
    tokenizer: PreTrainedTokenizerBase
    limit: int  # tokens that the model can read
    fingerprint: str  # SHA-256 of the weights
    modules: tuple[str, ...]  # names of the adapted layers' kinds
    start: dict[str, Tensor] | None = None
    origin: dict[str, str] = field(default_factory=dict)  # revision, fingerprints of tokenizer and starting adapter
    generation_settings: str = ""  # the model's own generation_config.json, which an exported model gets again

    @property
    def base_model(self) -> PreTrainedModel:
        """The model inside of its adapter: every forward pass goes through it, those of `generate` as well."""
        base: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return cast("PreTrainedModel", base)


def load_model(
    settings: ModelSettings,
    lora: LoraSettings,
    seed: int,
    check: Callable[[Path], None] = lambda folder: None,
    report: Report = silent,
    full: bool = False,
    build: Callable[[PreTrainedModel, int], PreTrainedModel] = lambda base, seed: base,
    extra_adapters: Sequence[str] = (),
    cache: Path | None = None,
) -> LoadedModel:
    """The base model frozen, an adapter on it, and its tokenizer. Raises ConfigError where it cannot be.

    `check` is given the model's folder before anything is loaded, and may refuse by raising. `full`: no adapter, its
    own weights are trained, in float32. `build`: makes another model of the base model and
    the seed; `extra_adapters`: names of adapters beside the run's own. `cache`: folder of what was converted.
    """
    device = device_of(settings)
    dtype, folder = dtype_of(settings, device), folder_of(settings, report, cache)
    start = Path(settings.adapter).expanduser() if settings.adapter else None
    if start is not None:
        adapter_settings(start)
    earlier = earlier_folders(settings)
    for adapter in adapters_of(settings):
        if note := another_base(adapter, settings.source, folder):
            report(note)
    check(folder)
    with ThreadPoolExecutor(1) as beside:  # hashing a large model takes as long as loading it
        digest_of_weights = beside.submit(fingerprint, folder)
        with named(settings.source):
            place = "auto" if settings.spread else "cuda" if device == "cuda" else None
            base, tokenizer = load_base(folder, dtype, place, settings.four_bit)
        refuse_offloading(base)
        if settings.gradient_checkpointing:
            checkpoint_gradients(base, settings.source)
        base = build(base, seed)
        model: Any = base.float().requires_grad_(True) if full else with_adapter(base, lora, seed, start)
        add_beside(model, extra_adapters)
        if earlier:
            add_earlier(model, earlier)
        if place is None:
            model = model.to(device)
        weights = digest_of_weights.result()
    origin = {"revision": revision_of(folder), "tokenizer": tokenizer_fingerprint(folder)}
    if start is not None:
        origin["adapter"] = digest([start / ADAPTER, start / "adapter_config.json"])
    if earlier:
        origin["earlier"] = " ".join(digest([one / ADAPTER, one / "adapter_config.json"]) for one in earlier)
    if origin["revision"] and not full:  # where the exported adapter says that its base is
        model.peft_config["default"].base_model_name_or_path = settings.source
        model.peft_config["default"].revision = origin["revision"]
    kinds = tuple(sorted({kind(name) for name in adapted_layers(model)}))
    numbers = None
    if start is not None or full or earlier:
        numbers = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    generation = folder / GENERATION
    return LoadedModel(
        model, tokenizer, context_limit(model.config), weights, kinds, numbers, origin,
        generation.read_text(encoding="utf-8") if generation.is_file() else "",
    )  # fmt: skip


def refuse_offloading(base: PreTrainedModel) -> None:
    """Layers that did not fit on the GPUs and were put elsewhere cannot be trained through."""
    places: dict[str, Any] = getattr(base, "hf_device_map", None) or {}
    elsewhere = [name for name, place in places.items() if place in ("cpu", "disk")] if len(places) > 1 else []
    if elsewhere:
        raise ConfigError(
            f"{len(elsewhere)} parts of the model do not fit on the GPUs, such as {elsewhere[0]}",
            field="model.spread",
            value=True,
            fix="Set model.four_bit to true, or take a smaller model",
        )


def checkpoint_gradients(base: PreTrainedModel, source: str) -> None:
    """Activations are computed again in the backward pass. The embeddings must give gradients for it to reach LoRA."""
    try:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise ConfigError(
            f"the architecture of {source} has none",
            field="model.gradient_checkpointing",
            value=True,
            fix="Set it to false",
        ) from None
    base.enable_input_require_grads()
