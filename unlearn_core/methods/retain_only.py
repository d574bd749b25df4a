from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, knob


@dataclass(frozen=True)
class RetainOnly(Method):
    """Catastrophic forgetting, the control: only more training on retain texts.

    L = retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour); the forget windows are not used. Whatever
    a method forgets has to be compared with what is forgotten here by itself (Goel et al. 2022, arXiv 2201.06640).
    """

    facts: ClassVar[Facts] = Facts(
        label="Retain texts only (CF, control)",
        formula=r"L = \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n",
        passes="retain windows 1 F + 1 B",
        data="retain texts; forget windows are only measured",
        memory="nothing beside the adapter and its optimizer",
        fails="it hardly forgets: other methods are compared with it",
        settings={"optimizer": {"learning_rate": 8e-4}, "schedule": {"steps": 40, "batch_size": 8}},
    )
    control: ClassVar[bool] = True

    retain_weight: float = knob(1.0, 0.01, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        keep = self.retain_loss(model, batch, reference)
        assert keep is not None
        return Objective(keep.new_zeros(()).requires_grad_(), keep)


METHOD = RetainOnly
