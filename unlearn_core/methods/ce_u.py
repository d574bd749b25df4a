from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, Tensor, knob


@dataclass(frozen=True)
class CEU(Method):
    """Cross-entropy unlearning: the model learns its own prediction with the true token removed.

    L = mean over forget tokens of CE(softmax(model) || softmax(own logits, label at -infinity, no gradient))
        + retain_weight * NLL(retain) + ...  (Yang 2025, arXiv 2503.01224).
    Bounded below, and needs no reference: it aims at a distribution that the model itself gives. The first token of the
    answer is trained as well, which its code leaves out.
    """

    facts: ClassVar[Facts] = Facts(
        label="Own prediction without the word (CE-U)",
        formula=(
            r"L = \mathbb{E}_t\,\mathrm{CE}\big([\mathrm{softmax}(z_t - \infty\,e_{y_t})]_{\text{const}},\ \pi_\theta"
            r"\big) + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n"
        ),
        passes="forget 1 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows; retain windows where they have weight",
        memory="a copy of the labelled tokens' logits while a batch is worked on",
        fails="without a retain loss it spreads to contexts in which the token is right",
        settings={
            "method": {"name": "ce_u", "retain_weight": 10.0},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"steps": 80, "batch_size": 8},
        },
    )

    retain_weight: float = knob(0.0, 0.0, 100.0, "Weight of the retain loss; its author uses none.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        def without_the_label(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
            aim = logits.detach().scatter(1, labels[:, None], float("-inf")).softmax(-1)
            return -(aim * logits.log_softmax(-1)).sum(-1)

        forget = model.per_token(batch.forget, without_the_label).sum() / batch.forget.labelled
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = CEU
