"""Directions of a layer's inputs: those that retain texts fill (GPM), and those that earlier adapters read (O-LoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearn_core.guard_rails.shared.retain_rows import retain_samples
from unlearn_core.guard_rails.shared.settings import RetainSampleSettings
from unlearn_core.guard_rails.shared.subspace import in_double
from unlearn_core.model.adapters import EARLIER
from unlearn_core.model.batches import collate

if TYPE_CHECKING:
    from unlearn_core.context import RunContext

Bases = dict[str, Tensor]  # of a layer, by its name in the model: orthonormal directions (inputs, k), float32


def layer_of(name: str) -> str:
    """The adapted layer of one of its adapter's tensors, as the adapted model names it."""
    return name.partition(".lora_")[0]


# ---------------------------------------------------------------------------------------- retain texts' inputs (GPM)


def retain_inputs(context: RunContext, rail: RetainSampleSettings, energy: float) -> Bases:
    """Of each layer's inputs on retain windows, the leading directions with `energy` of their square sum.

    Gradient Projection Memory (arXiv 2103.09762), for LoRA. Its eigenvectors of the uncentred second moment X^T X are
    the leading singular vectors of the inputs X. Forward passes alone, of the model as it began, on real tokens: a
    window goes through by itself, so that there is no padding. `inputs` x `inputs` numbers a layer while it is fitted.
    """
    moments = InputCovariance(context.model, list(dict.fromkeys(map(layer_of, context.adapter.parts()))))
    windows = retain_samples(context, rail, 1)
    with context.reference() as model, moments:
        for number, window in enumerate(windows, 1):
            context.report("reading what retain texts put into the layers", f"{number} of {len(windows)}")
            tokens = collate([window], context.pad_id, context.device)
            model(input_ids=tokens.ids, attention_mask=tokens.mask, use_cache=False)
            moments.seen = None
    bases: Bases = {}
    home = context.adapter.values
    for number, (layer, moment) in enumerate(moments.sums.items(), 1):
        context.report("finding the directions to protect", f"{number} of {len(moments.sums)}")
        bases[layer] = leading_directions(moment, energy).to(home)
    return {layer: bases[owner] for layer, owner in moments.owners.items()}


class InputCovariance:
    """While it is entered, sums X^T X (inputs, inputs), float64, of what goes into some layers of a model.

    Layers that are given the very same tensor one after another (queries, keys and values of a block) share a sum.
    """

    def __init__(self, model: nn.Module, layers: list[str]) -> None:
        self.layers = {layer: model.get_submodule(layer) for layer in layers}
        self.sums: dict[str, Tensor] = {}  # by the layer that owns them
        self.owners: dict[str, str] = {}
        self.seen: tuple[str, Tensor] | None = None  # the layer that was last given something, and what
        self._hooks: list[Any] = []

    def __enter__(self) -> InputCovariance:
        self._hooks = [
            module.register_forward_pre_hook(lambda module, given, layer=layer: self._add(layer, given[0]))
            for layer, module in self.layers.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self.seen = None

    def _add(self, layer: str, given: Tensor) -> None:
        same = self.seen is not None and self.seen[1] is given
        owner = self.owners.setdefault(layer, self.owners[self.seen[0]] if same and self.seen else layer)
        self.seen = (layer, given)
        if owner == layer:
            rows = in_double(given.reshape(-1, given.shape[-1]))
            moment = rows.T @ rows
            self.sums[layer] = self.sums[layer] + moment if layer in self.sums else moment


def leading_directions(moment: Tensor, energy: float) -> Tensor:
    """The fewest leading eigenvectors (inputs, k) of a second moment whose eigenvalues are `energy` of their sum."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values > values[0] * len(values) * torch.finfo(values.dtype).eps).sum())
    needed = 1 + int((values.cumsum(0) < energy * values.sum()).sum())
    leading: Tensor = vectors[:, : min(rank, needed)].float().contiguous()
    return leading


# ---------------------------------------------------------------------------------- what earlier adapters read (O-LoRA)


def earlier_inputs(context: RunContext) -> Bases:
    """Of each layer, the span of the rows of the earlier adapters' A: the inputs that they read.

    Orthogonal subspaces for requests that come one after another (O-LoRA, arXiv 2310.14152). There a penalty, 0.5 times
    the sum of the absolute entries of A_old A_new^T, makes them nearly orthogonal; here they are, to rounding. It says
    nothing of inputs that the base model itself uses.
    """
    bases: Bases = {}
    for layer in dict.fromkeys(map(layer_of, context.adapter.parts())):
        adapters = context.model.get_submodule(layer).lora_A
        rows = [adapters[name].weight.detach() for name in adapters if name.startswith(EARLIER)]
        if rows:
            _, sizes, directions = torch.linalg.svd(in_double(torch.cat(rows)), full_matrices=False)
            rank = int((sizes > sizes[0] * max(directions.shape) * torch.finfo(torch.float32).eps).sum())
            bases[layer] = directions[:rank].T.float().contiguous().to(context.adapter.values)
    return bases
