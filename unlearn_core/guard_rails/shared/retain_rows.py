"""What a guard rail reads of retain texts: which samples, when anew, and the gradients that they give."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_core.guard_rails.shared.settings import RetainRowSettings, RetainSampleSettings
from unlearn_core.masks.base import masked
from unlearn_core.model.batches import Tokens, collate
from unlearn_core.model.losses import nll, per_token

if TYPE_CHECKING:
    from unlearn_core.context import RunContext
    from unlearn_core.model.window import Window

FIRST_REFRESHES = 3  # B is zero at first, so the first rows say nothing about A: each of these steps renews them


def retain_samples(context: RunContext, rail: RetainSampleSettings, step: int) -> list[Window]:
    """The `batches * batch_size` samples of step `step`; half of them neighbours where the settings say so."""
    count = rail.samples
    near = context.windows.neighbour if rail.neighbours else ()
    drawn = context.draw("rail", context.windows.retain, step, count - count // 2 if near else count)
    if near:
        pairs = zip(drawn, context.draw("rail near", near, step, count), strict=False)
        drawn = [window for pair in pairs for window in pair][:count]
    return drawn


def retain_gradients(context: RunContext, rail: RetainRowSettings, step: int) -> tuple[Tensor, Tensor | None, int]:
    """Rows (K, P) from fresh samples, as they come; what was left over; and the tokens that were read.

    A row is the gradient of the mean loss of a group of samples, of one sample (OrthoGrad, arXiv 2503.02312), or of one
    sample's right words' mean logit (OGD, arXiv 1910.07104, its variant with the true label alone; a text has a label
    at every token, so it is their mean). Logits' gradients do not vanish where the loss is small. The samples go
    through the model in the same mode (dropout on) as the forget windows of the step. Where a mask lets only some
    numbers change, the rest is 0 in every row: a projected update then stays inside the mask.

    What was left over: the last sample's own gradient (P,), which the published code did not clear; where
    `as_run.leftover_gradients` asks for it.
    """
    drawn = retain_samples(context, rail, step)
    groups = [drawn[i :: rail.groups] for i in range(rail.groups)] if rail.rows == "group" else [[w] for w in drawn]
    batches = [collate(group, context.pad_id, context.device) for group in groups if group]
    loss_of = right_logit if rail.rows == "logit" else nll_per_token
    rows = torch.empty(len(batches), context.adapter.values.numel(), device=context.adapter.values.device)
    for row, tokens in zip(rows, batches, strict=True):
        row.copy_(masked(context.adapter.gradient_of(loss_of(context, tokens)), context.mask))
    leftover = None
    if context.config.as_run.leftover_gradients:
        last = collate([batches[-1].windows[-1]], context.pad_id, context.device)
        leftover = context.adapter.gradient_of(nll_per_token(context, last))
        batches.append(last)
    return rows, leftover, sum(int(tokens.mask.sum()) for tokens in batches)


def nll_per_token(context: RunContext, tokens: Tokens) -> Tensor:
    """Mean loss of the labelled tokens."""
    return nll(context.model, tokens).token_mean


def right_logit(context: RunContext, tokens: Tokens) -> Tensor:
    """Mean logit of the right words, at the labelled tokens."""

    def right(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
        return logits.gather(1, labels[:, None]).squeeze(1)

    return per_token(context.model, tokens, right).sum() / tokens.labelled


def spans(context: RunContext, rail: RetainRowSettings) -> dict[str, slice]:
    """The parts of the vector that have a span of their own: all of it, or each adapted layer's (each parameter's).

    A and B of a layer go together; of a model whose own weights are trained, each parameter is by itself.
    """
    if rail.scope == "global":
        return {"": slice(None)}
    together = groupby(context.adapter.parts().items(), key=lambda entry: entry[0].partition(".lora_")[0])
    slices = {}
    for layer, entries in together:
        parts = [part for _, part in entries]
        slices[layer] = slice(parts[0].start, parts[-1].stop)
    return slices


class Refreshes:
    """When directions are refreshed: each of the first three steps, then by count or by drift.

    By drift: where ||theta - theta_refresh|| / ||theta|| has passed the limit (methods.md 1.5), whatever the steps.
    """

    def __init__(self, context: RunContext, settings: RetainRowSettings) -> None:
        self.context, self.settings = context, settings
        self.last = 0  # step of the last refresh, 0: none yet
        self.then: Tensor | None = None  # the adapter's numbers (P,) at that step, where drift counts
        self.drift = 0.0

    def due(self, step: int) -> bool:
        """Whether step `step` begins with a refresh; without any yet (a branch with another rail) it always does."""
        if self.settings.refresh == "drift" and self.then is not None:
            now = self.context.adapter.values.detach()
            self.drift = ((now - self.then).norm() / now.norm()).item()
        if step <= FIRST_REFRESHES or not self.last:
            return True
        if self.settings.refresh == "drift":
            return self.then is None or self.drift > self.settings.drift
        return (step - 1) % self.settings.every == 0

    def made(self, step: int) -> None:
        self.last = step
        if self.settings.refresh == "drift":
            self.then = self.context.adapter.values.detach().clone()

    def values(self) -> dict[str, float]:
        """How far the weights had moved since the last refresh when this step began."""
        return {"rail_drift": self.drift} if self.settings.refresh == "drift" else {}

    def tensors(self) -> dict[str, Tensor]:
        state = {"refreshed": torch.tensor([self.last])} if self.last else {}
        return state if self.then is None else {**state, "then": self.then}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.last = int(tensors["refreshed"]) if "refreshed" in tensors else 0
        self.then = tensors["then"].to(self.context.adapter.values, copy=True) if "then" in tensors else None
        self.drift = 0.0
