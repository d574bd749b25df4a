from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, knob


@dataclass(frozen=True)
class RetainOnly(Method):
    """Catastrophic forgetting, the control: nothing but more training on what is to be kept.

    L = retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour); the forget windows are not looked at. Whatever
    a method forgets has to be compared with what is forgotten here by itself (Goel et al. 2022, arXiv 2201.06640).
    """

    facts: ClassVar[Facts] = Facts(
        label="Retain text only (CF, control)",
        formula=r"L = \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n",
        passes="text to keep 1 F + 1 B",
        data="text to keep; forget windows are only measured",
        memory="nothing beside the adapter and its optimizer",
        fails="it hardly forgets: what others forget is to be compared with it",
        settings={"optimizer": {"learning_rate": 8e-4}, "schedule": {"steps": 40, "batch_size": 8}},
    )
    control: ClassVar[bool] = True

    retain_weight: float = knob(1.0, 0.01, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        keep = self.retain_loss(model, batch, reference)
        assert keep is not None
        return Objective(keep.new_zeros(()).requires_grad_(), keep)


METHOD = RetainOnly
