from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn_core.methods.base import DAMPED, Facts, Tensor, knob
from unlearn_core.methods.ssd import SSD, importance


@dataclass(frozen=True)
class LFSSD(SSD):
    """Selective dampening without labels: importance is the gradient of the logits' squared norm.

    As SSD, with I = mean over windows of |gradient of ||logits||^2|, absolute instead of squared (Foster et al. 2024,
    "Loss-free machine unlearning", arXiv 2402.19308): no label is looked at, so the loss need not be known. The norm
    is taken at each predicting position and its square averaged over the window's.
    """

    facts: ClassVar[Facts] = Facts(
        label="Selective dampening, label-free (LFSSD)",
        formula=r"\theta_i \leftarrow \min\!\Big(\frac{\lambda\,I^D_i}{I^f_i},\,1\Big)\theta_i \;\;\text{where}\;\; "
        r"I^f_i > \alpha_k\,I^D_i,\quad I = \mathbb{E}\,\big|\partial \lVert v \rVert_2^2\big|",
        passes="before step 1: 1 F + 1 B for each forget window and each of `samples` retain windows; then none",
        data="forget windows and retain texts; labels are not used",
        memory="two values for each weight while importances are measured, then one; and the initial weights",
        fails="much of it is the embeddings of tokens that only forget text has; large logits are not knowledge: "
        "weights of strong outputs are damped, known or not",
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
    squared: ClassVar[bool] = False

    alpha: float = knob(2.0, 1e-3, 1e9, "Threshold of the last step: weights with I_f / I_D above it are damped.")
    alpha_from: float = knob(1e3, 1e-3, 1e9, "Threshold of the first step; it falls by a constant factor per step.")

    def window_loss(self, model: Any, tokens: Any) -> Tensor:
        loss: Tensor = importance.squared_outputs(model, tokens)
        return loss


METHOD = LFSSD
