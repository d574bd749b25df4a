from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, knob


@dataclass(frozen=True)
class GradAscent(Method):
    """Gradient ascent: the model is pushed away from every token of the forget windows, as far as the ceiling.

    L = -mean over forget windows and their tokens of min(NLL, ceiling)
        + retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour).
    Without a ceiling it is the published form (Jang et al. 2022, arXiv 2210.01504), unbounded below: it collapses.
    A token at the ceiling gives no gradient any more (after nabla-tau, arXiv 2403.14339, which compares whole batches):
    what is left to forget is what the step works on, where a mean would be reached by its weakest tokens alone.
    """

    facts: ClassVar[Facts] = Facts(
        label="Gradient ascent",
        formula=(
            r"L = -\mathbb{E}_f\,\frac{1}{N}\sum_t \min(\mathrm{NLL}_t, c)"
            r" + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows; retain windows where they have weight",
        memory="nothing beside the adapter and its optimizer",
        fails="without a ceiling it is unbounded: the loss diverges and answers collapse",
        settings={"optimizer": {"learning_rate": 4e-4}, "schedule": {"steps": 60, "batch_size": 8}},
    )

    ceiling: float = knob(0.0, 0.0, 100.0, "Loss in nats above which a token is no longer trained on; 0 = none.")
    hold: bool = knob(
        False, help="Tokens above the ceiling are trained back to it, so that forgetting does not overshoot."
    )
    retain_weight: float = knob(0.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        nll = model.nll(batch.forget)
        losses = nll.tokens
        if self.ceiling:
            losses = self.ceiling - (self.ceiling - losses).abs() if self.hold else losses.clamp(max=self.ceiling)
            losses = losses.where(nll.tokens > 0, 0)
        return Objective(-(losses.sum(1) / nll.count).mean(), self.retain_loss(model, batch, reference))


METHOD = GradAscent
