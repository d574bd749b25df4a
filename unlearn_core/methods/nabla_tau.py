from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, RunContext, knob


@dataclass(frozen=True)
class NablaTau(Method):
    """Gradient ascent until the forget loss is that of a model that never saw the target.

    L = alpha * relu(level - NLL(forget))^2 + (1 - alpha) * NLL(retain) + neighbour_weight * NLL(neighbour)
    (Trippa et al. 2024, arXiv 2403.14339). The paper's level is the loss on unseen data of the same kind; here it is
    the chart's line "forgotten", or a number. At the level the forget term is 0, and so is its gradient.
    """

    facts: ClassVar[Facts] = Facts(
        label="Ascent to a level (nabla-tau)",
        formula=(
            r"L = a\,\max(0, \ell - \overline{\mathrm{NLL}}_f)^2"
            r" + (1 - a)\,(\alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n)"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows, retain texts, and a level: the loss on such text unseen",
        memory="nothing beside the adapter and its optimizer",
        fails="the mean reaches the level while single tokens may still be known: weak tokens carry it",
        settings={
            "method": {"name": "nabla_tau", "alpha": 0.02, "retain_weight": 2.0},
            "optimizer": {"learning_rate": 6e-4},
            "schedule": {"steps": 70, "batch_size": 8},
        },
    )

    alpha: float = knob(0.5, 0.01, 1.0, "Weight of the forget term; its authors lower it during training.")
    level: float = knob(0.0, 0.0, 100.0, "Forget loss to stop at, in nats per token; 0 = the forgotten level.")
    retain_weight: float = knob(1.0, 0.0, 100.0, "Factor of the retain term; 1 as published.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def batch_extras(self, context: RunContext, step: int, rows: int) -> dict[str, float]:
        return {"forget_level": context.forget_level}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        below = (self.level or batch.extras["forget_level"]) - model.nll(batch.forget).mean_per_token.mean()
        forget = self.alpha * below.clamp(min=0) ** 2
        share = 1 - self.alpha
        return Objective(forget, model.retain_loss(batch, share * self.retain_weight, share * self.neighbour_weight))


METHOD = NablaTau
