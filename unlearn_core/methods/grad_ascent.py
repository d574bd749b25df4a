from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_core.config import knob

if TYPE_CHECKING:
    from unlearn_core.methods import Objective


@dataclass(frozen=True)
class GradAscent:
    """Gradient ascent: the model is pushed away from every token of the forget windows, as far as the ceiling.

    L = -mean over forget windows and their tokens of min(NLL, ceiling)
        + retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour).
    Without a ceiling it is the published form (Jang et al. 2022, arXiv 2210.01504), unbounded below: it collapses.
    A token at the ceiling gives no gradient any more (after nabla-tau, arXiv 2403.14339, which compares whole batches):
    what is left to forget is what the step works on, where a mean would be reached by its weakest tokens alone.
    """

    ceiling: float = knob(0.0, 0.0, 100.0, "nats at which a token is left alone; 0 = never")
    hold: bool = knob(
        False, help="a token beyond the ceiling is pulled back to it, so that forgetting does not overshoot"
    )
    retain_weight: float = knob(0.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model, batch, reference) -> Objective:
        from unlearn_core.methods import Objective
        from unlearn_core.models import keep_loss, nll

        found = nll(model, batch.forget)
        losses = found.tokens
        if self.ceiling:
            losses = self.ceiling - (self.ceiling - losses).abs() if self.hold else losses.clamp(max=self.ceiling)
            losses = losses.where(found.tokens > 0, 0)
        return Objective(
            -(losses.sum(1) / found.count).mean(), keep_loss(model, batch, self.retain_weight, self.neighbour_weight)
        )


METHOD = GradAscent
