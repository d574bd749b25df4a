from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, knob
from unlearn_core.methods.random_mismatch import mismatch_loss


@dataclass(frozen=True)
class LLMU(Method):
    """Three terms: away from the target, toward random answers after it, and everything else as it was.

    L = -forget_weight * NLL(forget) + random_weight * NLL(random retain text | forget context)
        + retain_weight * KL(reference || model) on retain text
    (Yao et al. 2023, arXiv 2310.10683; also arXiv 2405.15152). Its published KL is a cross-entropy with padding in it,
    and its random term trains the question too: neither is so here. Answers tend to become white space.
    """

    facts: ClassVar[Facts] = Facts(
        label="LLMU, three terms",
        formula=(
            r"L = -\epsilon_1\,\overline{\mathrm{NLL}}_f + \epsilon_2\,\mathrm{NLL}(y_{\mathrm{rand}} \mid x_f)"
            r" + \epsilon_3\,K_r + \nu\,K_n,\quad K = \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi_\theta)"
        ),
        passes="forget 6 F + 6 B (itself and 5 random answers); retain windows 2 F + 1 B",
        data="forget windows and retain texts, which also give the random answers",
        memory="nothing beside the adapter and its optimizer",
        fails="answers become white space or unrelated text; the ascent is unbounded",
        settings={
            "method": {"name": "llmu", "retain_weight": 10.0},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"steps": 60, "batch_size": 4},
        },
    )

    forget_weight: float = knob(0.5, 0.0, 100.0, "Weight of the gradient ascent (epsilon 1).")
    random_weight: float = knob(1.0, 0.0, 100.0, "Weight of the random answers (epsilon 2).")
    mismatches: int = knob(5, 1, 16, "Random answers for each forget window.")
    retain_weight: float = knob(
        1.0, 0.01, 100.0, "Weight of the KL divergence from the reference model on retain texts (epsilon 3)."
    )
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the same distance on neighbour texts.")

    @property
    def retain_term(self) -> str:
        return "kl"

    @property
    def forget_passes(self) -> int:
        """How often the forget rows go through the model in a step."""
        return 1 + self.mismatches * (self.random_weight > 0)

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        forget = -self.forget_weight * model.nll(batch.forget).mean_per_token.mean()
        if self.random_weight:
            forget = forget + self.random_weight * mismatch_loss(model, batch, self.mismatches)
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = LLMU
