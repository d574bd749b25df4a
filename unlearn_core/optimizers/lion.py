"""Lion: sign steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Steps of equal size in every entry, in the direction of the momentum's sign (Chen et al. 2023, arXiv 2302.06675).

    u = sign(beta1 * m + (1 - beta1) * g); m <- beta2 * m + (1 - beta2) * g. Wants a learning rate 3 to 10 times smaller
    than AdamW's.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for values in group["params"]:
                state = self.state[values]
                momentum = state.setdefault("momentum", torch.zeros_like(values))
                direction = (first * momentum + (1 - first) * values.grad).sign()
                values.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * direction)
                momentum.mul_(second).add_(values.grad, alpha=1 - second)


OPTIMIZER = Lion
