from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_core.config import knob

if TYPE_CHECKING:
    from unlearn_core.methods import Objective


@dataclass(frozen=True)
class WGA:
    """Weighted gradient ascent: every token is pushed as hard as the model still believes in it.

    L = -mean over forget tokens of p^beta * NLL, p = exp(-NLL) without gradient, + retain_weight * NLL(retain) + ...
    (Wang et al. 2025, arXiv 2502.19301). A forgotten token weighs almost nothing, so it is bounded in effect.
    """

    beta: float = knob(1.0, 0.0, 20.0, "0 = plain ascent; larger spares what is half forgotten")
    retain_weight: float = knob(1.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model, batch, reference) -> Objective:
        from unlearn_core.methods import Objective
        from unlearn_core.models import keep_loss, nll

        found = nll(model, batch.forget)
        weighted = (-self.beta * found.tokens.detach()).exp() * found.tokens
        forget = -weighted.sum() / found.count.sum()
        return Objective(forget, keep_loss(model, batch, self.retain_weight, self.neighbour_weight))


METHOD = WGA
