from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Facts, Method, RunContext, Tensor, knob
from unlearn_core.settings.imports import Lazy

fitted_adapter = Lazy("unlearn_core.methods.shared.fitted_adapter")


@dataclass(frozen=True)
class TaskVector(Method):
    """Task arithmetic: the change of weights that learning the forget texts makes is subtracted.

    theta = theta_0 - a * (theta_fit - theta_0), a from 0 to `strength` over the steps of the run (Ilharco et al. 2022,
    arXiv 2212.04089, "forgetting via negation"). The fit is an adapter on the forget windows, made once before step 1;
    to negate it, B alone changes its sign. Every later step only sets a: at 0 the model is the base model.
    """

    facts: ClassVar[Facts] = Facts(
        label="Task vector, negated",
        formula=r"\theta = \theta_0 - a\,(\theta_{\mathrm{fit}} - \theta_0),\quad "
        r"\theta_{\mathrm{fit}} = \arg\min_\theta \mathrm{NLL}_f,\quad a = \alpha\,k/n",
        passes="before step 1: forget 1 F + 1 B a step of the fit; then none: a step only sets the dial",
        data="forget windows; retain texts only where `orthogonal` is above 0",
        memory="one adapter; while it is fitted AdamW's two, and with `orthogonal` one for each of its samples",
        fails="hardly forgets what the model knows perfectly: there is no gradient to fit; far out it harms everything",
        settings={"guard_rail": {"kind": "none"}, "schedule": {"steps": 24, "batch_size": 16}},
        dial="scale",
        where=("lora",),
        rails=("none",),
        trains=False,
    )

    strength: float = knob(
        8.0, 0.0, 1000.0, "Factor of the task vector at the last step (a); its authors go to 1, MUSE to 5."
    )
    fit_steps: int = knob(20, 1, 100_000, "Training steps of the fit, on schedule.batch_size forget windows each.")
    fit_rate: float = knob(8e-4, 1e-8, 1.0, "Learning rate of the fit (AdamW).")
    orthogonal: int = knob(
        0, 0, 1024, "Retain windows to whose gradients the vector is projected orthogonally; 0 = the plain vector."
    )

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        fitted = fitted_adapter.reinforced(context, self.fit_steps, self.fit_rate)
        return {
            "fitted": fitted_adapter.off_retain_gradients(context, fitted, self.orthogonal)
            if self.orthogonal
            else fitted
        }

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        amount = self.strength * step / context.config.schedule.steps
        fitted_adapter.put(context, fitted_adapter.negated(context, context.method_state["fitted"], amount))
        return {"dial": amount}


METHOD = TaskVector
