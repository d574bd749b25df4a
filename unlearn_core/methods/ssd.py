from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn_core.methods.base import DAMPED, Facts, Method, RunContext, Tensor, knob
from unlearn_core.settings.imports import Lazy

importance = Lazy("unlearn_core.methods.shared.importance")


@dataclass(frozen=True)
class SSD(Method):
    """Selective synaptic dampening: weights that matter more for forget text than for retain texts are damped.

    I = mean over windows of the squared gradient of the loss; every weight with I_f > alpha * I_D is multiplied by
    min(lambda * I_D / I_f, 1) (Foster et al. 2023, arXiv 2308.07707; authors on images: alpha 5 to 50, lambda 0.1 or
    1). No training: alpha comes down from `alpha_from` over the run, each step from the original weights. The public
    code squares the mean gradient of a batch; here every window is by itself, which makes I a Fisher diagonal. Of a
    language model that has memorized its text, squared gradients differ by many powers of ten: so does alpha.
    """

    facts: ClassVar[Facts] = Facts(
        label="Selective dampening (SSD)",
        formula=r"\theta_i \leftarrow \min\!\Big(\frac{\lambda\,I^D_i}{I^f_i},\,1\Big)\theta_i \;\;\text{where}\;\; "
        r"I^f_i > \alpha_k\,I^D_i,\quad I = \mathbb{E}\,(\partial\,\mathrm{NLL})^2",
        passes="before step 1: 1 F + 1 B for each forget window and each of `samples` retain windows; then none",
        data="forget windows and retain texts",
        memory="two values for each weight while importances are measured, then one; and the initial weights",
        fails="much of it is the embeddings of tokens that only forget text has; beyond them it damps what others "
        "share; alpha decides all, and no theory gives it",
        settings={
            "where": {"kind": "full"},
            "guard_rail": {"kind": "none"},
            "schedule": {"steps": 24, "batch_size": 16},
        },
        dial="threshold",
        where=("full",),
        rails=("none",),
        trains=False,
        gauges={"damped_share": DAMPED},
    )
    squared: ClassVar[bool] = True  # importances are squared gradients, not their absolute values

    alpha: float = knob(3e4, 1e-3, 1e9, "Threshold of the last step: weights with I_f / I_D above it are damped.")
    alpha_from: float = knob(1e8, 1e-3, 1e9, "Threshold of the first step; it falls by a constant factor per step.")
    damping: float = knob(1.0, 0.0, 1000.0, "Lambda: the larger, the less a selected weight is damped.")
    samples: int = knob(256, 1, 100_000, "Retain windows (and as many neighbour windows) that I_D is estimated on.")

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        return {"ratio": importance.importance_ratio(context, self.window_loss, self.squared, self.samples)}

    def window_loss(self, model: Any, tokens: Any) -> Tensor:
        """What a weight's importance is the gradient of, for one window."""
        loss: Tensor = importance.mean_nll(model, tokens)
        return loss

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        alpha = threshold_at(step, context.config.schedule.steps, self.alpha_from, self.alpha)
        damped = importance.damp(context, context.method_state["ratio"], alpha, self.damping)
        return {"dial": alpha, "damped_share": damped}


def threshold_at(step: int, steps: int, first: float, last: float) -> float:
    """From `first` at step 1 to `last` at step `steps` by equal factors; `last` where there is but one step."""
    return last * (first / last) ** ((steps - step) / (steps - 1)) if steps > 1 else last


METHOD = SSD
