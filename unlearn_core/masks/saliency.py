"""Rows with the largest gradient of the forget loss may change (SalUn)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unlearn_core.masks.base import Mask
from unlearn_core.masks.shared.rows import (
    base_of,
    chosen,
    finite,
    losses,
    mask_of_adapter,
    masked_layers,
    top,
)

if TYPE_CHECKING:
    from unlearn_core.context import RunContext


class Saliency(Mask):
    """The rows with the largest gradient of the forget loss may change (SalUn, arXiv 2310.12508).

    The gradients of all forget windows are summed, then their absolute values ranked. On the weights themselves
    (where.kind full) every parameter by itself, all together. With an adapter the rows of its B, by the gradient of the
    base weight's row that each writes to: a fresh A has no gradient while B is zero, so the adapter's own parameters
    would say nothing. A row's score is the mean over its entries, fair to wide and to narrow layers; all layers are
    ranked together.
    """

    label: ClassVar[str] = "rows with the largest forget gradient"

    def choose(self, context: RunContext) -> Tensor:
        if context.config.where.kind == "full":
            return top(finite(salient_numbers(context), "the model"), context.config.where.share)
        return mask_of_adapter(context, salient_rows(context))


def salient_rows(context: RunContext) -> dict[str, Tensor]:
    """Of each adapted layer the rows that may change, (outputs,) bool, by the gradients of the base weights."""
    layers = masked_layers(context)
    weights = {name: base_of(layer).weight for name, layer in layers.items()}
    home, scores = context.adapter.values.device, {}
    with summed_gradients(weights.values()) as sums:
        for loss in losses(context, context.windows.forget, "scoring rows", summed=True):
            loss.backward(inputs=list(sums))
        for name, weight in weights.items():
            # Conv1D, the linear layer of GPT-2, has its outputs in columns.
            entries = 0 if isinstance(base_of(layers[name]), Conv1D) else 1
            scores[name] = finite(sums[weight].abs().mean(entries), name).to(home)
    return chosen(scores, context.config.where.share)


@contextmanager
def summed_gradients(weights: Iterable[nn.Parameter]) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Within: frozen weights take part in backward passes; their gradients are summed in float32.

    Each gradient is added as soon as it is there, so that there is one at a time beside the sums, in the weights' own
    format. Afterwards the weights are frozen as before, without a gradient.
    """
    sums = {weight: torch.zeros_like(weight, dtype=torch.float32) for weight in weights}

    def add(weight: Tensor) -> None:
        assert isinstance(weight, nn.Parameter) and weight.grad is not None
        sums[weight] += weight.grad
        weight.grad = None

    hooks = []
    try:
        for weight in sums:
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(add))
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for weight in sums:
            weight.requires_grad_(False)
            weight.grad = None


def salient_numbers(context: RunContext) -> Tensor:
    """|sum of the forget windows' gradients| of every trained parameter, (P,)."""
    total = torch.zeros_like(context.adapter.gradient)
    for loss in losses(context, context.windows.forget, "scoring weights", summed=True):
        total += context.adapter.gradient_of(loss)
    return total.abs_()


MASK = Saliency
