from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, functional, knob


@dataclass(frozen=True)
class NPO(Method):
    """Negative preference optimization: gradient ascent that fades as a window becomes less likely than it was.

    L = (2 / beta) * mean functional.softplus(-beta * d) + retain_weight * R(retain) + neighbour_weight * R(neighbour),
    d = NLL_sum - NLL_sum of the reference (Zhang et al. 2024, arXiv 2404.05868, eq. 3; sums over tokens, not means),
    R the NLL (NPO + RT) or KL(reference || model) in nats per token (NPO + KL).
    Its gradient is gradient ascent's times w = 2 pi^beta / (pi^beta + pi_ref^beta): 1 at the start, 0 when forgotten.
    """

    facts: ClassVar[Facts] = Facts(
        label="Negative preference (NPO)",
        formula=(
            r"L = \frac{2}{\beta}\,\mathbb{E}_f\,\mathrm{softplus}\big(-\beta\,(\mathrm{NLL}_f"
            r" - \mathrm{NLL}_f^{\mathrm{ref}})\big) + \alpha R_r + \nu R_n,"
            r"\quad R = \mathrm{NLL}\ \text{or}\ \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi_\theta)"
        ),
        passes=(
            "forget 1 F + 1 B, reference 1 F for each new window; retain windows 1 F + 1 B where they have "
            "weight, and 1 F of the reference for KL"
        ),
        data="forget windows; retain windows where they have weight",
        memory="one row of reference losses for each window met",
        fails=(
            "log-probabilities are sums: a long answer is counted as forgotten while each of its tokens is hardly "
            "less likely"
        ),
        settings={
            "method": {"name": "npo", "retain_weight": 5.0},
            "optimizer": {"learning_rate": 8e-4},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    beta: float = knob(0.1, 1e-3, 10.0, "Inverse temperature: the larger, the sooner a window counts as forgotten.")
    retain_weight: float = knob(1.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")
    retain_term: str = knob(
        "nll",
        choices=("nll", "kl"),
        help="Retain loss: NLL of the retain texts, or their KL divergence from the reference model.",
    )

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        lost = model.nll(batch.forget).sum - reference.nll(batch.forget).sum
        forget = 2 / self.beta * functional.softplus(-self.beta * lost).mean()
        keep = self.retain_loss(model, batch, reference)
        return Objective(forget, keep)


METHOD = NPO
