from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, Tensor, knob


@dataclass(frozen=True)
class RandomMismatch(Method):
    """Random answers: after the context of the target, the model learns an unrelated retain text.

    L = mismatch_weight * NLL(random retain text | forget context) + retain_weight * NLL(retain) + ...
    (the L_rdn term of LLMU, Yao et al. 2023, arXiv 2310.10683, alone). Bounded and stable; what it teaches is wrong.
    The loss is on the answer alone; LLMU's code trains its question too.
    """

    facts: ClassVar[Facts] = Facts(
        label="Random answers",
        formula=r"L = \mu\,\mathrm{NLL}(y_{\mathrm{rand}} \mid x_f) + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n",
        passes="forget contexts with random answers 1 F + 1 B for each; retain windows 1 F + 1 B",
        data="forget windows and retain texts, which also give the random answers",
        memory="nothing beside the adapter and its optimizer",
        fails="it teaches confident wrong answers",
        settings={
            "method": {"name": "random_mismatch", "retain_weight": 5.0},
            "optimizer": {"learning_rate": 8e-4},
            "schedule": {"steps": 60, "batch_size": 8},
        },
    )

    mismatch_weight: float = knob(1.0, 0.01, 100.0, "Weight of the random answers.")
    mismatches: int = knob(1, 1, 16, "Random answers for each forget window.")
    retain_weight: float = knob(1.0, 0.01, 100.0, "Weight of the retain loss; its batch also gives the random answers.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    @property
    def forget_passes(self) -> int:
        """How often the forget rows go through the model in a step."""
        return self.mismatches

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        forget = self.mismatch_weight * mismatch_loss(model, batch, self.mismatches)
        return Objective(forget, self.retain_loss(model, batch, reference))


def mismatch_loss(model: LanguageModel, batch: Batch, count: int) -> Tensor:
    """NLL of `count` random retain answers (or texts) after each forget context, mean over their tokens."""

    assert batch.retain
    texts = [window.said for window in batch.retain.windows]
    rows = range(len(batch.forget.windows))
    drawn = [[texts[(row + turn) % len(texts)] for row in rows] for turn in range(count)]
    losses = [model.nll(batch.forget.with_answers(answers, batch.pad_id)).token_mean for answers in drawn]
    return sum(losses[1:], losses[0]) / count


METHOD = RandomMismatch
