"""Memory estimate of a run, part by part, against the device's memory; made before a tensor is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import torch
from torch import nn

from unlearn_core.model.adapters import adapter_shapes, chosen_layers, kind, linear_layers
from unlearn_core.model.batches import EVALUATED, MOST_LABELS, MOST_TOKENS
from unlearn_core.model.loading import context_limit, device_of, dtype_of, named, skeleton
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import RailMemory, separate_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Lengths = Mapping[str, Sequence[int]]

FOUR_BITS = 0.5 + 4 / 64 * 0.25 + 1 / 256  # bytes a weight: nf4, its scales quantised once more
# Tensors that autograd keeps per token and layer, counted on the architectures of the tests (test_memory.py).
HIDDEN_KEPT, INNER_KEPT, QUERIES_KEPT = 4, 4, 2
FULL_HIDDEN_KEPT, FULL_INNER_KEPT = 2, 1  # and as many more where the weights themselves are trained
SCORES_BYTES = 12  # per token, head and token looked at, where attention is not done by a fused kernel
LOGIT_BYTES = 12  # per token and piece of the vocabulary: in the model's format, cut, in float32, as log-softmax
MOMENT_BYTES = 12  # a number of an input's second moment: in double precision, and as many directions in single
# Vectors of the adapter's length beside its values, as the allocator counts them (test_full_weights.py): in a step the
# gradient, a copy, before and after; all that there may be where a guard rail takes part; few during a refresh.
STEP_VECTORS, RAIL_VECTORS, REFRESH_VECTORS = 4, 9, 2
PARTS = ("weights", "adapter", "optimizer", "gradients", "activations")
PREPARED_VECTORS = 3  # of a method that prepares something: what it keeps, and what it compares


class LoraShape(NamedTuple):
    """Of an adapter on one layer: A is (rank, inputs), B (outputs, rank)."""

    rank: int
    inputs: int
    outputs: int

    @classmethod
    def on(cls, layer: nn.Module, rank: int) -> LoraShape:
        assert isinstance(layer.weight, torch.Tensor)
        outputs, inputs = layer.weight.shape if isinstance(layer, nn.Linear) else reversed(layer.weight.shape)
        return cls(rank, inputs, outputs)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with its adapter that determine its memory: counts, or bytes where named so."""

    weights: int
    buffers: int  # bytes: they have a format of their own
    adapter: int
    linear: int  # of the weights, those in layers that 4 bits shrink
    layers: int
    hidden: int
    inner: int  # width inside of the feed-forward part, for one token
    queries: int  # width of queries, keys and values together
    heads: int  # whose scores are kept: 0 where attention is done by a fused kernel, which keeps none
    inputs: int  # width of what goes into the adapted layers, all together
    vocabulary: int
    limit: int
    adapted: int  # layers that carry the adapter
    modules: tuple[str, ...]  # their kinds
    adapted_weights: int = 0  # of the weights, those in layers that carry the adapter
    earlier: int = 0  # adapters of earlier requests, which stay on
    start: int = 0  # trained parameters as they began, where the reference needs them
    full: bool = False  # no adapter: the weights themselves are trained, all of them, and `adapter` counts them


@dataclass(frozen=True)
class Plan:
    """The settings of a run that determine its memory; by default a run that trains nothing."""

    bytes_per_weight: int = 4  # of the base model
    four_bit: bool = False
    optimizer: str = "adamw"
    momentum: bool = False
    optimizers: int = 1  # how many of them
    vectors: int = STEP_VECTORS  # as long as the adapter, in a step
    rail: RailMemory = RailMemory()  # vectors that the guard rail takes
    inputs_rail: int = 0  # bytes that a guard rail takes which works on the layers' inputs
    mask: str = "none"  # its kind
    step_tokens: int = 0  # read with gradients in one step
    measured_tokens: int = 0  # read without, pass after pass
    taught_labels: int = 0  # of the measured forget windows, with a teacher's distribution each, kept for the run
    window: int = 0  # tokens of the longest text
    pass_tokens: int = MOST_TOKENS  # in one forward pass, at most
    dropout: bool = False  # of the adapter
    checkpointing: bool = False  # activations are computed again in the backward pass


@dataclass(frozen=True)
class Estimate:
    """Bytes. `activations` as the run is set; `with_checkpointing` is what they would be by computing them again.

    Activations hold what is kept of texts as well: the distributions that a teacher has for measured windows.
    `weights` are all that is not trained: the base model, earlier adapters, and what is trained as it began, where the
    reference needs that. `adapter` is what is trained, be it the weights themselves.
    """

    weights: int
    adapter: int
    optimizer: int
    gradients: int  # of what is trained, and the retained ones that span the subspace
    activations: int
    with_checkpointing: int

    @property
    def fixed(self) -> int:
        """The memory of a run without activations."""
        return self.weights + self.adapter + self.optimizer + self.gradients

    @property
    def total(self) -> int:
        return self.fixed + self.activations


def shape_of(model: PreTrainedModel, adapter: Mapping[str, LoraShape]) -> Shape:
    """Of a model, which may be a skeleton, with an adapter on some of its layers."""
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    linear = [layer for layer in linear_layers(model).values() if layer is not output]

    def number(*names: str, default: int) -> int:
        values = (getattr(config, name, None) for name in names)
        return next((int(value) for value in values if isinstance(value, int) and value > 0), default)

    hidden = number("hidden_size", "n_embd", "d_model", default=1)
    heads = number("num_attention_heads", "n_head", "n_heads", default=1)
    width = number("head_dim", default=hidden // heads)
    shared = number("num_key_value_heads", default=heads)
    at_once = number("num_experts_per_tok", default=1)
    unfused = ("attn_logit_softcapping", "attention_dropout", "attn_pdrop", "attn_dropout")
    return Shape(
        weights=sum(p.numel() for p in model.parameters()),
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
        adapter=sum(lora.rank * (lora.inputs + lora.outputs) for lora in adapter.values()),
        linear=sum(layer.weight.numel() for layer in linear if isinstance(layer.weight, torch.Tensor)),
        layers=number("num_hidden_layers", "n_layer", "n_layers", default=1),
        hidden=hidden,
        inner=at_once * number("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size", default=4 * hidden),
        queries=width * (heads + 2 * shared),
        heads=heads if any(getattr(config, name, None) for name in unfused) else 0,
        inputs=sum(lora.inputs for lora in adapter.values()),
        vocabulary=number("vocab_size", default=1),
        limit=context_limit(model.config),
        adapted=len(adapter),
        modules=tuple(sorted({kind(name) for name in adapter})),
        adapted_weights=sum(lora.inputs * lora.outputs for lora in adapter.values()),
    )


def estimate(shape: Shape, plan: Plan) -> Estimate:
    """Bytes of each part of a run.

    Weights, adapter and optimizer are exact; activations are those that autograd keeps until the backward pass (all
    passes of a step together), by counts that were measured.
    """
    size = 4 if shape.full else plan.bytes_per_weight  # what is trained is in float32
    weights = shape.weights * size + shape.buffers + (shape.earlier + shape.start) * 4
    if plan.four_bit:
        weights -= int(shape.linear * (size - FOUR_BITS))
    moments = {"adamw": 2, "sgd": int(plan.momentum), "lion": 1, "sophia": 2, "sophia_soul": 2}[plan.optimizer]
    step_count = 4 if plan.optimizer == "adamw" else 0
    optimizer = plan.optimizers * (moments * shape.adapter * 4 + step_count)
    taught = 4 * plan.taught_labels * shape.vocabulary
    activations = taught + activation_bytes(shape, plan, size, plan.checkpointing)
    recomputed = taught + activation_bytes(shape, plan, size, True)
    return Estimate(weights, shape.adapter * 4, optimizer, gradient_bytes(shape, plan, size), activations, recomputed)


def activation_bytes(shape: Shape, plan: Plan, size: int, checkpointing: bool) -> int:
    """What autograd keeps of a step, or the logits of a measurement where they are more. `size`: bytes of a number.

    With `checkpointing` only each layer's input is kept, and one pass is computed again at a time.
    """
    a_layer = size * (HIDDEN_KEPT * shape.hidden + INNER_KEPT * shape.inner + QUERIES_KEPT * shape.queries)
    a_layer += SCORES_BYTES * shape.heads * plan.window
    inputs = shape.inputs * ((4 if size < 4 else 0) + (4 if plan.dropout else 0))  # an adapter computes in float32
    a_layer += inputs // shape.layers
    if shape.full:  # each layer's input, for its weights' gradients
        a_layer += size * (FULL_HIDDEN_KEPT * shape.hidden + FULL_INNER_KEPT * shape.inner)
    a_pass = min(plan.step_tokens, plan.pass_tokens)
    logits = LOGIT_BYTES * plan.step_tokens * shape.vocabulary + 8 * a_pass * shape.vocabulary
    measuring = LOGIT_BYTES * min(plan.measured_tokens, plan.pass_tokens) * shape.vocabulary
    if not checkpointing:
        return max(measuring, plan.step_tokens * shape.layers * a_layer + logits)
    again = max(measuring, plan.step_tokens * shape.layers * shape.hidden * size + a_pass * a_layer + logits)
    if plan.mask != "none":  # made from one text at a time, with nothing computed again
        again = max(again, plan.window * (shape.layers * a_layer + LOGIT_BYTES * shape.vocabulary))
    return again


def plan_of(config: RunConfig, shape: Shape, dtype: torch.dtype, lengths: Lengths | None = None) -> Plan:
    """What a run does. `lengths`: tokens of every window of each set; None before they are read: the longest possible.

    `dtype`: the base model's.
    """
    schedule, method = config.schedule, config.method
    longest = min(shape.limit, config.data.window_tokens)
    rail_memory = config.guard_rail.memory()

    def most(name: str, count: int) -> int:
        """Tokens of the `count` longest windows of a set; a small set is gone through again."""
        ordered = sorted(lengths.get(name, ()), reverse=True) if lengths is not None else [longest]
        return sum(ordered[i % len(ordered)] for i in range(count)) if ordered else 0

    measured = sorted(lengths.get("forget", ()), reverse=True)[: EVALUATED["forget"]] if lengths is not None else ()
    taught = () if config.data.everything else measured
    weights = {"retain": method.retain_weight, "neighbour": method.neighbour_weight}
    step = method.forget_passes * most("forget", schedule.batch_size)
    step += sum(most(name, schedule.retain_rows) for name, weight in weights.items() if weight)
    row = most("retain", rail_memory.row_samples) if rail_memory.rows else 0  # samples behind one direction, together
    return Plan(
        bytes_per_weight=dtype.itemsize,
        four_bit=config.model.four_bit,
        optimizer=config.optimizer.name,
        momentum=config.optimizer.momentum > 0,
        optimizers=(1 + method.alternates + separate_states(config)) * method.facts.trains,
        vectors=step_vectors(config),
        rail=rail_memory,
        inputs_rail=MOMENT_BYTES * shape.inputs**2 // max(1, shape.adapted) if rail_memory.input_moments else 0,
        mask=config.where.mask,
        step_tokens=max(step, row),
        taught_labels=sum(min(tokens, MOST_LABELS) for tokens in taught),
        window=longest if lengths is None else max(map(max, lengths.values()), default=0),
        dropout=config.lora.dropout > 0 and not shape.full,
        measured_tokens=sum(EVALUATED.values()) * longest if lengths is None else sum(map(sum, lengths.values())),
        checkpointing=config.model.gradient_checkpointing,
    )


def estimate_for(config: RunConfig, shape: Shape, dtype: torch.dtype, lengths: Lengths | None = None) -> Estimate:
    """The estimate of a run, as `plan_of` describes it."""
    return estimate(shape, plan_of(config, shape, dtype, lengths))


def step_vectors(config: RunConfig) -> int:
    """Vectors as long as the adapter that a step has beside its values and what optimizer and guard rail keep."""
    if config.guard_rail.memory().rows:
        return RAIL_VECTORS
    method = config.method
    retains = bool(method.retain_weight or method.neighbour_weight)
    curvature = 2 * (config.optimizer.name == "sophia")  # whose gradient is another
    more = retains + (config.where.mask != "none") + curvature
    return STEP_VECTORS + more + PREPARED_VECTORS * method.prepares


def gradient_bytes(shape: Shape, plan: Plan, size: int) -> int:
    """All of the length of what is trained that is neither its values nor an optimizer's, at the worst moment.

    That is in a step, during a refresh, or while a mask by saliency is made: an adapter's needs the
    gradients of its layers' own weights, summed in float32. `size`: bytes of a weight.
    """
    rail = plan.rail
    vectors = max(plan.vectors + rail.stored, REFRESH_VECTORS + rail.stored + rail.fresh)
    saliency = 0
    if plan.mask == "saliency" and not shape.full:
        a_layer = shape.adapted_weights // max(1, shape.adapted)
        saliency = shape.adapter * 4 + shape.adapted_weights * 4 + a_layer * size
    mask = shape.adapter if plan.mask != "none" else 0
    return max(vectors * shape.adapter * 4, saliency) + mask + plan.inputs_rail


def adapter_of(config: RunConfig, model: PreTrainedModel) -> dict[str, LoraShape]:
    """The layers that the run adapts, and how. Raises ConfigError as loading does."""
    if not config.model.adapter:
        return {
            name: LoraShape.on(layer, config.lora.rank)
            for name, layer in chosen_layers(model, config.lora.modules).items()
        }
    folder = Path(config.model.adapter).expanduser()
    shapes = adapter_shapes(folder)
    layers = {}
    for name, (rank, inputs) in ((name, shape) for name, shape in shapes.items() if ".lora_A" in name):
        outputs = shapes.get(name.replace(".lora_A", ".lora_B"), [0])[0]
        layers[name.removeprefix("base_model.model.").partition(".lora_A")[0]] = LoraShape(rank, inputs, outputs)
    return layers


# ------------------------------------------------------------------------------------------ what the device has


def available(device: str, spread: bool = False) -> int:
    """Free bytes of a device (of all GPUs together where the model is spread), within a container's limit."""
    if device == "cuda":
        return sum(torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count() if spread else 1))
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    free, limit = int(psutil.virtual_memory().available), free_in_container()
    return free if limit is None else min(free, limit)


def free_in_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left under a container's limit; cached files count as free. None without a limit."""
    try:
        limit, used = int((root / "memory.max").read_text()), int((root / "memory.current").read_text())
        stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return limit - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no limit is written as the word max
        return None


# ------------------------------------------------------------------------------------------------- does it fit


def check(need: int, estimated: Estimate, config: RunConfig, device: str, free: int | None) -> None:
    """Raises ConfigError where `need` bytes are more than are free, with both numbers and what to change."""
    if free is None or need <= free:
        return
    ways, what = ways_out(estimated, config, device), parts(estimated, config.where.kind == "full")
    raise ConfigError(
        f"The run needs about {gigabytes(need)} of memory on {device} and {gigabytes(free)} are free ({what})",
        fix=f"Try {', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}",
    )


def ways_out(estimated: Estimate, config: RunConfig, device: str) -> list[str]:
    """Settings that reduce the memory, the largest part first."""
    model, full, ways = config.model, config.where.kind == "full", {}
    trained = estimated.fixed - estimated.weights
    if not full and model.dtype != "float16" and dtype_of(model, device) == torch.float32:
        ways["model.dtype = bfloat16"] = estimated.weights // 2
    if not full and not model.four_bit and device == "cuda":
        ways["model.four_bit = true"] = estimated.weights // 2
    if full and "lora" in config.method.facts.where:
        ways["where.kind = lora"] = trained
    if not model.gradient_checkpointing:
        ways["model.gradient_checkpointing = true"] = estimated.activations - estimated.with_checkpointing
    if config.schedule.batch_size > 1:
        ways["a smaller schedule.batch_size"] = estimated.activations // 2
    ways["a smaller data.window_tokens"] = estimated.activations // 2 - 1
    rail = config.guard_rail.memory()
    if rail.rows or rail.input_moments:
        way = f"fewer guard_rail.{rail.fewer}" if rail.fewer else "another guard_rail.kind"
        ways[way] = estimated.gradients // 2
    if not full:
        ways["a smaller lora.rank"] = trained // 2
    best = sorted((way for way, less in ways.items() if less > 0), key=lambda way: -ways[way])
    return best[:4] if best and ways[best[0]] * 4 > estimated.weights else [*best[:3], "a smaller model"]


def gigabytes(count: int) -> str:
    """Bytes for a person: 12.1 GB, 29 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def parts(estimated: Estimate, full: bool) -> str:
    """The parts of the total in words; empty parts are left out."""
    words = {"weights": "weights as they began", "adapter": "weights"} if full else {}
    sizes = {name: getattr(estimated, name) for name in PARTS}
    return ", ".join(f"{words.get(name, name)} {gigabytes(size)}" for name, size in sizes.items() if size)


def shape_for(config: RunConfig, folder: Path) -> Shape:
    """Of the model in a folder with what the run trains, without loading it. Raises ConfigError as loading does."""
    with named(config.model.source):
        model = skeleton(folder)
    if config.method.builds_model:
        with torch.device("meta"):
            model = config.method.build_model(model, config.seed)
    if config.where.kind == "full":
        shape = shape_of(model, {})
        return replace(shape, adapter=shape.weights, full=True)
    shape = shape_of(model, adapter_of(config, model))
    trained = shape.adapter * (1 + len(config.method.extra_adapters))
    shapes = [adapter_shapes(Path(folder).expanduser()).values() for folder in config.model.earlier]
    earlier = sum(prod(numbers) for one in shapes for numbers in one)
    begun = bool(config.model.adapter or config.model.earlier)
    return replace(shape, adapter=trained, earlier=earlier, start=trained if begun else 0)


def check_before_loading(config: RunConfig, folder: Path) -> Shape:
    """Raises ConfigError where model, optimizer and guard rail do not fit, without any activations."""
    device, shape = device_of(config.model), shape_for(config, folder)
    estimated = estimate_for(config, shape, dtype_of(config.model, device))
    without_texts = replace(estimated, activations=0, with_checkpointing=0)
    check(estimated.fixed, without_texts, config, device, available(device, config.model.spread))
    return shape


def check_step(config: RunConfig, shape: Shape, lengths: Lengths) -> None:
    """Raises ConfigError where the longest windows that a step may meet do not fit beside the loaded model.

    `lengths`: tokens of every window of each set.
    """
    device = device_of(config.model)
    estimated = estimate_for(config, shape, dtype_of(config.model, device), lengths)
    need = estimated.total - estimated.weights - estimated.adapter
    check(need, estimated, config, device, available(device, config.model.spread))
