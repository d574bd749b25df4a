from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn_core.config import knob

if TYPE_CHECKING:
    from unlearn_core.methods import Objective


@dataclass(frozen=True)
class IdkDPO:
    """Direct preference: a refusal is preferred to the target, each measured against the reference.

    L = -(2 / beta) * mean log sigmoid(beta * ((log p - log p_ref)(refusal) - (log p - log p_ref)(target)))
        + retain_weight * NLL(retain) + ...  (Rafailov et al. 2023, arXiv 2305.18290; as in TOFU and the NPO paper).
    Log-probabilities are sums over the answer's tokens. NPO is this without the refusal.
    """

    wants_refusals: ClassVar[bool] = True
    forget_passes: ClassVar[int] = 2

    beta: float = knob(0.1, 1e-3, 10.0, "how soon a window counts as refused: larger is sooner")
    retain_weight: float = knob(1.0, 0.0, 100.0, "of the loss on text to keep")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "of the loss on neighbouring text")

    def loss(self, model, batch, reference) -> Objective:
        from torch.nn.functional import logsigmoid

        from unlearn_core.methods import Objective
        from unlearn_core.models import keep_loss, nll, with_answers

        refused = with_answers(batch.forget, batch.refusals, batch.pad_id)
        gained = reference.nll(refused).sum - nll(model, refused).sum
        lost = reference.nll(batch.forget).sum - nll(model, batch.forget).sum
        forget = -2 / self.beta * logsigmoid(self.beta * (gained - lost)).mean()
        return Objective(forget, keep_loss(model, batch, self.retain_weight, self.neighbour_weight))


METHOD = IdkDPO
