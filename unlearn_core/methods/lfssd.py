from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn_core.methods.base import Facts, Tensor, knob
from unlearn_core.methods.ssd import SSD, importance


@dataclass(frozen=True)
class LFSSD(SSD):
    """Selective dampening without labels: a weight matters as much as the size of the logits hangs on it.

    As SSD, with I = mean over windows of |gradient of ||logits||^2|, absolute instead of squared (Foster et al. 2024,
    "Loss-free machine unlearning", arXiv 2402.19308): no label is looked at, so the loss need not be known. The norm
    is taken at each predicting position and its square averaged over the window's.
    """

    facts: ClassVar[Facts] = Facts(
        label="Selective dampening, label-free (LFSSD)",
        formula=r"\theta_i \leftarrow \min\!\Big(\frac{\lambda\,I^D_i}{I^f_i},\,1\Big)\theta_i \;\;\text{where}\;\; "
        r"I^f_i > \alpha_k\,I^D_i,\quad I = \mathbb{E}\,\big|\partial \lVert v \rVert_2^2\big|",
        passes="before step 1: 1 F + 1 B for each forget window and each of `samples` windows to keep; then none",
        data="forget windows and text to keep, of both only what the model says of them",
        memory="two numbers for each weight while importances are measured, then one; and the weights as they began",
        fails="much of it is the embeddings of words that only forget text has; large logits are not knowledge: what "
        "answers strongly is damped, known or not",
        settings={
            "where": {"kind": "full"},
            "guard_rail": {"kind": "none"},
            "schedule": {"steps": 24, "batch_size": 16},
        },
        dial="threshold",
        where=("full",),
        rails=("none",),
        trains=False,
    )
    squared: ClassVar[bool] = False

    alpha: float = knob(2.0, 1e-3, 1e9, "threshold of the last step: I_f / I_D beyond which a weight is damped")
    alpha_from: float = knob(1e3, 1e-3, 1e9, "threshold of the first step; it comes down by equal factors")

    def window_loss(self, model: Any, tokens: Any) -> Tensor:
        loss: Tensor = importance.squared_outputs(model, tokens)
        return loss


METHOD = LFSSD
