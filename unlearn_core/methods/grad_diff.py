from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_core.config import knob

if TYPE_CHECKING:
    from unlearn_core.methods import Objective


@dataclass(frozen=True)
class GradDiff:
    r"""Gradient difference: up on what is to be forgotten, down on what is to be kept, at the same time.

    L = -forget_weight * NLL(forget) + retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour)
    (Liu et al. 2022, arXiv 2203.12817; SOUL's first-order setting gives retain 2). The forget term is unbounded below
    and wins in the end: on TOFU it forgets far more than a model that never saw the data.
    """

    forget_weight: float = knob(1.0, 0.01, 100.0, "of the ascent")
    retain_weight: float = knob(1.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model, batch, reference) -> Objective:
        from unlearn_core.methods import Objective
        from unlearn_core.models import keep_loss, nll

        forget = -self.forget_weight * nll(model, batch.forget).mean_per_token.mean()
        return Objective(forget, keep_loss(model, batch, self.retain_weight, self.neighbour_weight))


METHOD = GradDiff
