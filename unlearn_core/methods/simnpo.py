from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_core.config import knob

if TYPE_CHECKING:
    from unlearn_core.methods import Objective


@dataclass(frozen=True)
class SimNPO:
    """NPO without a reference: a window is forgotten once its loss per token is large, whatever it was before.

    L = (2 / beta) * mean softplus(-beta * (NLL_mean - delta)) + retain_weight * NLL(retain) + ...
    (Fan et al. 2024, arXiv 2410.07163; delta inside beta as in its code, the paper writes gamma outside). Lengths
    do not matter, since it takes the mean over tokens. Its results depend much on the batch size.
    """

    beta: float = knob(2.5, 1e-3, 20.0, "how sharply a window goes from remembered to forgotten")
    delta: float = knob(0.0, 0.0, 20.0, "nats per token at which a window counts as half forgotten")
    retain_weight: float = knob(1.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model, batch, reference) -> Objective:
        from torch.nn.functional import softplus

        from unlearn_core.methods import Objective
        from unlearn_core.models import keep_loss, nll

        lost = nll(model, batch.forget).mean_per_token - self.delta
        forget = 2 / self.beta * softplus(-self.beta * lost).mean()
        return Objective(forget, keep_loss(model, batch, self.retain_weight, self.neighbour_weight))


METHOD = SimNPO
