from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, functional, knob


@dataclass(frozen=True)
class SimNPO(Method):
    """NPO without a reference: a window is forgotten once its loss per token is large, whatever it was before.

    L = (2 / beta) * mean functional.softplus(-beta * (NLL_mean - delta)) + retain_weight * R(retain) + ...
    (Fan et al. 2024, arXiv 2410.07163; delta inside beta as in its code, the paper writes gamma outside). Lengths
    do not matter, since it takes the mean over tokens. Its results depend much on the batch size. R: the NLL, or
    KL(reference || model), which alone needs the reference.
    """

    facts: ClassVar[Facts] = Facts(
        label="NPO without a reference (SimNPO)",
        formula=(
            r"L = \frac{2}{\beta}\,\mathbb{E}_f\,\mathrm{softplus}\big(-\beta\,(\overline{\mathrm{NLL}}_f"
            r" - \delta)\big) + \alpha R_r + \nu R_n,"
            r"\quad R = \mathrm{NLL}\ \text{or}\ \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi_\theta)"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight, and 1 F of the reference for KL",
        data="forget windows; retain windows where they have weight",
        memory="nothing beside the adapter and its optimizer",
        fails="results depend much on the batch size; short answers weigh as much as long ones",
        settings={"optimizer": {"learning_rate": 8e-4}, "schedule": {"steps": 60, "batch_size": 8}},
    )

    beta: float = knob(
        2.5, 1e-3, 20.0, "Inverse temperature: the larger, the sharper the transition from remembered to forgotten."
    )
    delta: float = knob(0.0, 0.0, 20.0, "Nats per token at which a window counts as half forgotten.")
    retain_weight: float = knob(1.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")
    retain_term: str = knob(
        "nll",
        choices=("nll", "kl"),
        help="Retain loss: NLL of the retain texts, or their KL divergence from the reference model.",
    )

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        lost = model.nll(batch.forget).mean_per_token - self.delta
        forget = 2 / self.beta * functional.softplus(-self.beta * lost).mean()
        keep = self.retain_loss(model, batch, reference)
        return Objective(forget, keep)


METHOD = SimNPO
