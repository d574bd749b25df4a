from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn_core.config import knob

if TYPE_CHECKING:
    from unlearn_core.methods import Objective


@dataclass(frozen=True)
class NPO:
    """Negative preference optimization: gradient ascent that fades as a window becomes less likely than it was.

    L = (2 / beta) * mean softplus(-beta * d) + retain_weight * NLL(retain) + neighbour_weight * NLL(neighbour),
    d = NLL_sum - NLL_sum of the reference (Zhang et al. 2024, arXiv 2404.05868, eq. 3; sums over tokens, not means).
    Its gradient is gradient ascent's times w = 2 pi^beta / (pi^beta + pi_ref^beta): 1 at the start, 0 when forgotten.
    """

    beta: float = knob(0.1, 1e-3, 10.0, "how soon a window counts as forgotten: larger is sooner")
    retain_weight: float = knob(1.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model, batch, reference) -> Objective:
        from torch.nn.functional import softplus

        from unlearn_core.methods import Objective
        from unlearn_core.models import keep_loss, nll

        lost = nll(model, batch.forget).sum - reference.nll(batch.forget).sum
        forget = 2 / self.beta * softplus(-self.beta * lost).mean()
        return Objective(forget, keep_loss(model, batch, self.retain_weight, self.neighbour_weight))


METHOD = NPO
