from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, knob


@dataclass(frozen=True)
class GradDiff(Method):
    r"""Gradient difference: ascent on forget texts and descent on retain texts, in one loss.

    L = -forget_weight * NLL(forget) + retain_weight * R(retain) + neighbour_weight * R(neighbour)
    (Liu et al. 2022, arXiv 2203.12817; SOUL's first-order setting gives retain 2), R the NLL, or the KL divergence
    KL(reference || model): then it is TOFU's GA + KL (Maini et al. 2024, arXiv 2401.06121). Only labelled tokens count
    in it; OpenUnlearning averages over prompts and padding too. The forget term is unbounded below and wins in the end.
    """

    facts: ClassVar[Facts] = Facts(
        label="Gradient difference",
        formula=(
            r"L = -\gamma\,\overline{\mathrm{NLL}}_f"
            r" + \alpha R_r + \nu R_n,"
            r"\quad R = \mathrm{NLL}\ \text{or}\ \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi_\theta)"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight, and 1 F of the reference for KL",
        data="forget windows and retain texts",
        memory="nothing beside the adapter and its optimizer",
        fails=(
            "the forget term is unbounded and wins in the end: it forgets far more than a model that never "
            "saw the target"
        ),
        settings={
            "method": {"name": "grad_diff", "retain_weight": 5.0},
            "optimizer": {"learning_rate": 6e-4},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    forget_weight: float = knob(1.0, 0.01, 100.0, "Weight of the gradient ascent.")
    retain_weight: float = knob(1.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")
    retain_term: str = knob(
        "nll",
        choices=("nll", "kl"),
        help="Retain loss: NLL of the retain texts, or their KL divergence from the reference model.",
    )

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        forget = -self.forget_weight * model.nll(batch.forget).mean_per_token.mean()
        keep = self.retain_loss(model, batch, reference)
        return Objective(forget, keep)


METHOD = GradDiff
