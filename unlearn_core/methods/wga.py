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
        passes="forget 1 F + 1 B; text to keep 1 F + 1 B where it has weight, and 1 F of the reference for KL",
        data="forget windows; text to keep where it has weight",
        memory="nothing beside the adapter and its optimizer",
        fails="what is half forgotten is left so; with beta 0 it is plain ascent and has no end",
        settings={
            "method": {"name": "wga", "retain_weight": 3.0},
            "optimizer": {"learning_rate": 6e-4},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    beta: float = knob(1.0, 0.0, 20.0, "0 = plain ascent; larger spares what is half forgotten")
    retain_weight: float = knob(1.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")
    retain_term: str = knob(
        "nll", choices=("nll", "kl"), help="learn the text to keep, or stay with the reference on it"
    )

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        found = model.nll(batch.forget)
        weighted = (-self.beta * found.tokens.detach()).exp() * found.tokens
        forget = -weighted.sum() / found.count.sum()
        keep = self.retain_loss(model, batch, reference)
        return Objective(forget, keep)


METHOD = WGA
