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
    Tensor,
    functional,
    knob,
)


@dataclass(frozen=True)
class UNDIAL(Method):
    """Self-distillation with adjusted logits: the model's own prediction with the true token's logit lowered.

    L = mean over forget tokens of CE(softmax(model) || softmax(reference logits - beta * onehot(label)))
        + retain_weight * NLL(retain) + ...  (Dong et al. 2024, arXiv 2402.10052; there with LoRA of rank 8).
    The aim does not move, so it converges where ascent runs away. Only labelled tokens count; a public implementation
    averages over all positions.
    """

    facts: ClassVar[Facts] = Facts(
        label="Adjusted logits (UNDIAL)",
        formula=(
            r"L = \mathbb{E}_t\,\mathrm{CE}\big(\mathrm{softmax}(z_t^{\mathrm{ref}} - \beta e_{y_t}),\ \pi_\theta\big)"
            r" + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n"
        ),
        passes="forget 2 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows; retain windows where they have weight",
        memory="logits of the labelled tokens twice, while a batch is worked on",
        fails="the reference's second choice is learned instead, related or not",
        settings={
            "method": {"name": "undial", "retain_weight": 10.0},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"steps": 70, "batch_size": 8},
        },
    )

    beta: float = knob(10.0, 0.0, 100.0, "Amount by which the logit of the true token is lowered.")
    retain_weight: float = knob(0.0, 0.0, 100.0, "Weight of the retain loss; its authors use none.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        def lowered(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
            assert before is not None
            aim = (before - self.beta * functional.one_hot(labels, logits.shape[-1])).softmax(-1)
            return -(aim * logits.log_softmax(-1)).sum(-1)

        forget = model.per_token(batch.forget, lowered, reference).sum() / batch.forget.labelled
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = UNDIAL
