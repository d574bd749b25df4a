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
    """Self-distillation with adjusted logits: the model learns what it said before, the right word made less likely.

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
        passes="forget 2 F + 1 B; text to keep 1 F + 1 B where it has weight",
        data="forget windows; text to keep where it has weight",
        memory="logits of the labelled tokens twice, while a batch is worked on",
        fails="what the reference found second likeliest is learned in its place, related or not",
        settings={
            "method": {"name": "undial", "retain_weight": 10.0},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"steps": 70, "batch_size": 8},
        },
    )

    beta: float = knob(10.0, 0.0, 100.0, "by how much the right word's logit is lowered")
    retain_weight: float = knob(0.0, 0.0, 100.0, "of the loss on text to keep; its authors use none")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        def lowered(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
            assert before is not None
            aim = (before - self.beta * functional.one_hot(labels, logits.shape[-1])).softmax(-1)
            return -(aim * logits.log_softmax(-1)).sum(-1)

        forget = model.per_token(batch.forget, lowered, reference).sum() / batch.forget.labelled
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = UNDIAL
