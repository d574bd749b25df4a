from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, knob


@dataclass(frozen=True)
class WGA(Method):
    """Weighted gradient ascent: every token is pushed as hard as the model still believes in it.

    L = -mean over forget tokens of p^beta * NLL, p = exp(-NLL) without gradient, + retain_weight * R(retain) + ...
    (Wang et al. 2025, arXiv 2502.19301). A forgotten token weighs almost nothing, so it is bounded in effect.
    R: the NLL, or KL(reference || model).
    """

    facts: ClassVar[Facts] = Facts(
        label="Weighted ascent (WGA)",
        formula=(
            r"L = -\mathbb{E}_t\,[p_t^\beta]_{\text{const}}\,\mathrm{NLL}_t"
            r" + \alpha R_r + \nu R_n,"
            r"\quad R = \mathrm{NLL}\ \text{or}\ \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi_\theta)"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight, and 1 F of the reference for KL",
        data="forget windows; retain windows where they have weight",
        memory="nothing beside the adapter and its optimizer",
        fails="half-forgotten tokens stay so; with beta 0 it is plain ascent, which is unbounded",
        settings={
            "method": {"name": "wga", "retain_weight": 3.0},
            "optimizer": {"learning_rate": 6e-4},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    beta: float = knob(
        1.0,
        0.0,
        20.0,
        "Exponent of the token weights: 0 = plain ascent; the larger, the less half-forgotten tokens count.",
    )
    retain_weight: float = knob(1.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")
    retain_term: str = knob(
        "nll",
        choices=("nll", "kl"),
        help="Retain loss: NLL of the retain texts, or their KL divergence from the reference model.",
    )

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        nll = model.nll(batch.forget)
        weighted = (-self.beta * nll.tokens.detach()).exp() * nll.tokens
        forget = -weighted.sum() / nll.count.sum()
        keep = self.retain_loss(model, batch, reference)
        return Objective(forget, keep)


METHOD = WGA
