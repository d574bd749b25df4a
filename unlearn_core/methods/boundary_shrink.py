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
class BoundaryShrink(Method):
    """Boundary shrink, experimental: each forget token is trained to the second likeliest one.

    L = mean over forget tokens of CE(model, arg-max of the reference without the label) + retain_weight * NLL(retain)
    + ... (Chen et al. 2023, arXiv 2303.11570, made for image classes; the form for tokens is ours). There the nearest
    class is looked for by a step on the image; a token's is the reference's second choice (its first, where it was
    wrong). The published form needs no retain texts. CE-U is its soft relative.
    """

    facts: ClassVar[Facts] = Facts(
        label="Boundary shrink (experimental)",
        formula=(
            r"L = \mathbb{E}_t\,\mathrm{CE}\big(\pi_\theta,\ \arg\max_{v \ne y_t} \pi_{\mathrm{ref}}(v)\big)"
            r" + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n"
        ),
        passes="forget 2 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows; retain windows where they have weight",
        memory="logits of the labelled tokens twice, while a batch is worked on",
        fails="teaches one wrong token for each right one, with confidence; a sentence of them makes no sense",
        settings={
            "method": {"name": "boundary_shrink", "retain_weight": 10.0},
            "optimizer": {"learning_rate": 5e-4},
            "schedule": {"steps": 80, "batch_size": 8},
        },
    )

    retain_weight: float = knob(0.0, 0.0, 100.0, "Weight of the retain loss; its authors use none.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        def to_the_nearest(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
            assert before is not None
            nearest = before.scatter(1, labels[:, None], float("-inf")).argmax(1)
            return functional.cross_entropy(logits, nearest, reduction="none")

        forget = model.per_token(batch.forget, to_the_nearest, reference).sum() / batch.forget.labelled
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = BoundaryShrink
