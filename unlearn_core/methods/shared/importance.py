"""Importance of every weight for forget against retain texts, and damping by their ratio.

What selective synaptic dampening (arXiv 2308.07707) and its relatives share. Three vectors of the weights' length at
most: the two importances while they are measured, one ratio afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from unlearn_core.model.batches import Tokens, collate, spread
from unlearn_core.model.losses import nll, per_token

if TYPE_CHECKING:
    from unlearn_core.context import RunContext
    from unlearn_core.model.window import Window

Loss = Callable[[nn.Module, Tokens], Tensor]
NOT_USED = -1.0  # the ratio 0 / 0 of a weight without importance for any text; no threshold selects it
MEASURED = 64  # forget windows that memorization is measured on


def mean_nll(model: nn.Module, tokens: Tokens) -> Tensor:
    """Negative log-likelihood, mean over the labelled tokens (SSD, arXiv 2308.07707)."""
    return nll(model, tokens).token_mean


def squared_outputs(model: nn.Module, tokens: Tokens) -> Tensor:
    """||logits||^2, mean over the labelled tokens: no label is looked at (LFSSD, arXiv 2402.19308)."""
    return per_token(model, tokens, lambda logits, labels, _: logits.square().sum(-1)).sum() / tokens.labelled


def output_norm(model: nn.Module, tokens: Tokens) -> Tensor:
    """||logits||, not squared, mean over the labelled tokens (Potion, arXiv 2406.09173)."""
    return per_token(model, tokens, lambda logits, labels, _: logits.norm(dim=-1)).sum() / tokens.labelled


def importance(context: RunContext, windows: Sequence[Window], loss: Loss, squared: bool, stage: str) -> Tensor:
    """(P,) mean over windows of the squared (else absolute) gradient of the loss of each window by itself.

    One window at a time, dropout off: the public code squares the mean gradient of a batch, in which what its samples
    disagree on is gone. Each layer's gradient is taken in as soon as autograd has it, and cleared.
    """
    total = torch.zeros_like(context.adapter.values, requires_grad=False)
    parameters, was_training = dict(context.model.named_parameters()), context.model.training

    def taken_into(part: slice) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.reshape(-1).to(total)
            total[part] += gradient.square() if squared else gradient.abs()
            parameter.grad.zero_()

        return take

    parts = context.adapter.parts().items()
    context.adapter.gradient.zero_()
    hooks = [parameters[name].register_post_accumulate_grad_hook(taken_into(part)) for name, part in parts]
    context.model.eval()
    try:
        for number, window in enumerate(windows, 1):
            context.report(stage, f"{number} of {len(windows)}")
            loss(context.model, collate([window], context.pad_id, context.device)).backward()
    finally:
        for hook in hooks:
            hook.remove()
        context.model.train(was_training)
    return total.div_(len(windows))


def forget_share(context: RunContext) -> float:
    """|D_f| / |D|, in windows; D = forget texts and retain texts."""
    count = len(context.windows.forget)
    return count / (count + len(context.windows.retain) + len(context.windows.neighbour))


def importance_ratio(context: RunContext, loss: Loss, squared: bool, samples: int) -> Tensor:
    """(P,) I_f / I_D: importance for the forget windows over that for retain texts.

    The ratio is infinite where I_D alone is 0, and `NOT_USED` where both are. I_D is the mean over up to `samples`
    retain and as many neighbour windows. The papers' D is all of the training data, in which the forget
    text hardly counts; what is left out of D is what these methods damage.
    """
    keep = [*spread(context.windows.retain, samples), *spread(context.windows.neighbour, samples)]
    forget = importance(context, context.windows.forget, loss, squared, "weights that matter for forget text")
    retain = importance(context, keep, loss, squared, "weights that matter for retain texts")
    return forget.div_(retain).nan_to_num_(nan=NOT_USED, posinf=float("inf"))


def damp(context: RunContext, ratio: Tensor, threshold: float, strength: float = 1.0) -> float:
    """Sets the run's weights to those it began with, times min(strength / ratio, 1) where ratio > threshold.

    Returns the share of the weights that were selected. Part by part, so that nothing of their number is made anew.
    """
    start, count = context.loaded.start, 0
    assert start is not None, "full weights, whose start is known"
    with torch.no_grad():
        for name, part in context.adapter.parts().items():
            selected = ratio[part] > threshold
            factor = torch.where(selected, (strength / ratio[part]).clamp(max=1.0), 1.0)
            context.adapter.values[part] = start[name].reshape(-1).to(factor) * factor
            count += int(selected.sum())
    context.adapter.scatter()
    return count / ratio.numel()


def threshold_for(ratio: Tensor, share: float) -> float:
    """Potion's cut-off: the percentile 100 - ln(1 + 100 share) of all ratios, infinite ones left out."""
    known = ratio[(ratio >= 0) & ratio.isfinite()].cpu().numpy()
    percentile = max(0.0, 100 - math.log1p(100 * share))
    return float(np.percentile(known, percentile, overwrite_input=True)) if known.size else 0.0


@torch.no_grad()
def memorized(context: RunContext) -> float:
    """Exact memorization: the share of labelled forget tokens that the model finds likeliest, dropout off."""
    tokens = collate(spread(context.windows.forget, MEASURED), context.pad_id, context.device)
    was_training = context.model.training
    context.model.eval()
    try:
        right = per_token(context.model, tokens, lambda logits, labels, _: (logits.argmax(-1) == labels).float())
        return (right.sum() / tokens.labelled).item()
    finally:
        context.model.train(was_training)
