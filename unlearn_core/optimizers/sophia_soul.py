"""Sophia in the form in which SOUL's code runs it."""

from __future__ import annotations

from torch import Tensor

from unlearn_core.optimizers.sophia import Sophia

TOKENS = 5120  # a constant in its code, whatever the batch is


class SophiaSOUL(Sophia):
    """Sophia as SOUL's code ran it (Jia et al. 2024, arXiv 2404.18239), which differs from Sophia-G in three ways.

    The curvature is the square of each step's own training gradient, of the mixed loss, without sampled labels (the
    empirical Fisher); the momentum is gathered twice a step (beta1 0.9 acts as 0.81); tokens are 5,120 always. With
    gradients as small as a language model's nearly every entry is clipped: a sign step, as `unclipped_share` shows.
    """

    hessian_every = 0
    usual_betas = (0.9, 0.95)

    def _gather(self, momentum: Tensor, hessian: Tensor, gradient: Tensor, betas: tuple[float, float]) -> None:
        for _ in range(2):
            momentum.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
        hessian.mul_(betas[1]).addcmul_(gradient, gradient, value=(1 - betas[1]) * TOKENS)


OPTIMIZER = SophiaSOUL
