"""Sophia-G: steps divided by a diagonal of the curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-15


class Sophia(torch.optim.Optimizer):
    """Sophia-G: momentum over a diagonal of the curvature, every entry clipped (Liu et al. 2023, arXiv 2305.14342).

    step = lr * sign(m) * min(|m| / (rho * tokens * h), 1), m = EMA of gradients, h = EMA of squared gradients of the
    mean loss on labels *sampled from the model* (Gauss-Newton-Bartlett), renewed every `hessian_every` steps by
    `curvature(gradient, tokens)`. Where few entries are unclipped it is a sign step: `unclipped_share` tells, of the
    entries that have momentum; its authors tune rho for 10 to 50 %.
    """

    hessian_every = 10  # steps between estimates on sampled labels; 0: it makes do with its own gradients
    usual_betas = (0.965, 0.99)

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] | None = None,
        rho: float = 0.04,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas or self.usual_betas, "rho": rho, "weight_decay": weight_decay}
        )
        self.unclipped_share = 0.0

    def is_due(self, step: int) -> bool:
        """Whether step `step`, from 1, begins with an estimate on sampled labels."""
        return bool(self.hessian_every) and (step - 1) % self.hessian_every == 0

    @torch.no_grad()
    def curvature(self, gradient: Tensor, tokens: int) -> None:
        """Takes in one estimate: the gradient (P,) of the mean loss over `tokens` tokens with sampled labels."""
        (values,) = self.param_groups[0]["params"]
        second = self.param_groups[0]["betas"][1]
        state = self.state[values]
        hessian = state.setdefault("hessian", torch.zeros_like(values))
        hessian.mul_(second).addcmul_(gradient, gradient, value=(1 - second) * tokens)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for values in group["params"]:
                state = self.state[values]
                momentum = state.setdefault("momentum", torch.zeros_like(values))
                hessian = state.setdefault("hessian", torch.zeros_like(values))
                self._gather(momentum, hessian, values.grad, group["betas"])
                ratio = momentum.abs() / (group["rho"] * hessian + SMALLEST)
                # An entry that never had a gradient has nothing to clip; its ratio is 0.
                moving = int(torch.count_nonzero(momentum))
                idle = ratio.numel() - moving
                self.unclipped_share = (int(torch.count_nonzero(ratio < 1)) - idle) / max(1, moving)
                values.mul_(1 - group["lr"] * group["weight_decay"])
                values.sub_(group["lr"] * momentum.sign() * ratio.clamp(max=1))

    def _gather(self, momentum: Tensor, hessian: Tensor, gradient: Tensor, betas: tuple[float, float]) -> None:
        momentum.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])


OPTIMIZER = Sophia
