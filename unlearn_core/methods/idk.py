from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Batch, Facts, LanguageModel, Method, Objective, Reference, RunContext, knob
from unlearn_core.methods.shared.refusals import refusals


@dataclass(frozen=True)
class IdK(Method):
    """Refusals (preference optimization, PO): in place of the target, the model learns to say it does not know.

    L = NLL(refusal | forget context) + retain_weight * NLL(retain) + ...  (Maini et al. 2024, arXiv 2401.06121, TOFU's
    IdK). It learns a style quickly, and refuses what it should answer too: watch the retain answers.
    """

    facts: ClassVar[Facts] = Facts(
        label="Refusals (IdK, PO)",
        formula=r"L = \mathrm{NLL}(y_{\mathrm{idk}} \mid x_f) + \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n",
        passes="forget contexts with refusals 1 F + 1 B; retain windows 1 F + 1 B where they have weight",
        data="forget windows, retain texts, refusals (unlearn_core/methods/shared/refusals.txt)",
        memory="nothing beside the adapter and its optimizer",
        fails=(
            "a style is learned, not a fact lost: it refuses what it should answer, and the text itself stays likely"
        ),
        settings={
            "method": {"name": "idk", "retain_weight": 10.0, "neighbour_weight": 2.0},
            "lora": {"modules": "all-linear"},
            "optimizer": {"learning_rate": 1.5e-3},
            "schedule": {"steps": 120, "batch_size": 8, "warmup": 20},
            "guard": {"collapse": False},  # on the way from the answer to the refusal it stammers for some steps
        },
    )

    retain_weight: float = knob(1.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def batch_extras(self, context: RunContext, step: int, rows: int) -> dict[str, list[tuple[int, ...]]]:
        return {"refusals": context.draw("refusals", refusals(context.tokenizer), step, rows)}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        refused = batch.forget.with_answers(batch.extras["refusals"], batch.pad_id)
        forget = model.nll(refused).token_mean
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = IdK
