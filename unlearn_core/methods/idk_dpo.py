from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import (
    Batch,
    Facts,
    LanguageModel,
    Method,
    Objective,
    Reference,
    RunContext,
    functional,
    knob,
)
from unlearn_core.methods.shared.refusals import refusals


@dataclass(frozen=True)
class IdkDPO(Method):
    """Direct preference: a refusal is preferred to the target, each measured against the reference.

    L = -(2 / beta) * mean log sigmoid(beta * ((log p - log p_ref)(refusal) - (log p - log p_ref)(target)))
        + retain_weight * R(retain) + ...  (Rafailov et al. 2023, arXiv 2305.18290; as in TOFU and the NPO paper).
    Log-probabilities are sums over the answer's tokens. NPO is this without the refusal.
    R: the NLL, or KL(reference || model).
    """

    facts: ClassVar[Facts] = Facts(
        label="Refusals preferred (DPO)",
        formula=(
            r"L = -\frac{2}{\beta}\,\mathbb{E}\log\sigma\big(\beta\,(\Delta(y_{\mathrm{idk}}) - \Delta(y_f))\big)"
            r" + \alpha R_r + \nu R_n,"
            r"\quad R = \mathrm{NLL}\ \text{or}\ \mathrm{KL}(\pi_{\mathrm{ref}} \Vert \pi_\theta),"
            r"\quad \Delta(y) = \log\pi_\theta(y \mid x_f) - \log\pi_{\mathrm{ref}}(y \mid x_f)"
        ),
        passes=(
            "forget 2 F + 2 B, reference 1 F for each new window; retain windows 1 F + 1 B where they have weight, and "
            "1 F of the reference for KL"
        ),
        data="forget windows, retain texts, refusals (unlearn_core/methods/shared/refusals.txt)",
        memory="one row of reference losses for each window met",
        fails=(
            "refusals leak to questions that should be answered; with a large beta it is content with the refusal alone"
        ),
        settings={
            "method": {"name": "idk_dpo", "retain_weight": 5.0},
            "optimizer": {"learning_rate": 8e-4},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    beta: float = knob(0.1, 1e-3, 10.0, "Inverse temperature: the larger, the sooner a window counts as refused.")
    retain_weight: float = knob(1.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")
    retain_term: str = knob(
        "nll",
        choices=("nll", "kl"),
        help="Retain loss: NLL of the retain texts, or their KL divergence from the reference model.",
    )

    @property
    def forget_passes(self) -> int:
        return 2

    def batch_extras(self, context: RunContext, step: int, rows: int) -> dict[str, list[tuple[int, ...]]]:
        return {"refusals": context.draw("refusals", refusals(context.tokenizer), step, rows)}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        refused = batch.forget.with_answers(batch.extras["refusals"], batch.pad_id)
        gained = reference.nll(refused).sum - model.nll(refused).sum
        lost = reference.nll(batch.forget).sum - model.nll(batch.forget).sum
        forget = -2 / self.beta * functional.logsigmoid(self.beta * (gained - lost)).mean()
        keep = self.retain_loss(model, batch, reference)
        return Objective(forget, keep)


METHOD = IdkDPO
