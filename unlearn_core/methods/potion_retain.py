from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import (
    DAMPED,
    Batch,
    Facts,
    LanguageModel,
    Method,
    Objective,
    Reference,
    RunContext,
    Tensor,
    knob,
    torch,
)
from unlearn_core.methods.potion import MEMORIZED, attempt, importance
from unlearn_core.settings.sections import NO_MASK, Rule


@dataclass(frozen=True)
class PotionRetain(Method):
    """Potion, then training on retain texts: the first step damps, the others repair the damage.

    The search of Potion (arXiv 2406.09173) is done before step 1, all of it. Step 1 sets the weights that it ended
    with; from step 2 on L = retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour). What comes back while
    only other text is trained on was not gone.
    """

    facts: ClassVar[Facts] = Facts(
        label="Potion, then retain text",
        formula=r"\theta_1 = \mathrm{Potion}(\theta_0);\quad k > 1:\; L = \alpha\,\mathrm{NLL}_r + \nu\,\mathrm{NLL}_n",
        passes="before step 1: 1 F + 1 B for each forget window and each of `samples` retain windows, 1 F for each "
        "try; then retain windows 1 F + 1 B",
        data="forget windows and retain texts",
        memory="as Potion, and the optimizer's state of every weight",
        fails="training on other text can bring back what was only damped",
        settings={
            "where": {"kind": "full"},
            "guard_rail": {"kind": "none"},
            "optimizer": {"learning_rate": 1e-4},
            "schedule": {"steps": 30, "batch_size": 16},
        },
        dial="selection s",
        where=("full",),
        rails=("none",),
        gauges={"damped_share": DAMPED, "memorized": MEMORIZED},
    )

    rules: ClassVar[tuple[Rule, ...]] = (NO_MASK,)

    memory: float = knob(0.7, 0.0, 1.0, "Rho: the search ends when the memorized share falls to rho times its start.")
    growth: float = knob(1.1, 1.001, 10.0, "Factor by which s grows from one try to the next.")
    tries: int = knob(100, 1, 500, "Largest number of tries of the search; its authors allow 500.")
    samples: int = knob(256, 1, 100_000, "Retain windows (and as many neighbour windows) that I_D is estimated on.")
    retain_weight: float = knob(1.0, 0.01, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        ratio = importance.importance_ratio(context, importance.output_norm, False, self.samples)
        enough = self.memory * importance.memorized(context)
        try:
            for number in range(1, self.tries + 1):
                context.report("looking for the strength that forgets", f"{number} of {self.tries}")
                if attempt(context, ratio, number, self.growth)[2] <= enough:
                    break
        finally:
            importance.damp(context, ratio, float("inf"))  # which damps nothing: the weights as they began
        return {"ratio": ratio, "try": torch.tensor(number)}

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        if step > 1:
            return {}
        share, damped, known = attempt(
            context, context.method_state["ratio"], int(context.method_state["try"]), self.growth
        )
        return {"dial": share, "damped_share": damped, "memorized": known}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        """The first step's is taken back by `apply_step`, but for what the optimizer keeps of it."""
        keep = self.retain_loss(model, batch, reference)
        assert keep is not None
        return Objective(keep.new_zeros(()).requires_grad_(), keep)


METHOD = PotionRetain
