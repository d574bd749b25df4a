"""One update of the trained parameters: gradient, guard rail, optimizer, projection, mask."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearn_core.context import RunContext
from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.guard_rails.base import GuardRail
from unlearn_core.guard_rails.shared.subspace import removed_share
from unlearn_core.masks.base import held, masked, masked_share
from unlearn_core.methods.base import Method, Objective
from unlearn_core.model.batches import Batch
from unlearn_core.model.losses import LanguageModel, loss_of_sampled_labels, per_token
from unlearn_core.optimizers import OPTIMIZERS
from unlearn_core.optimizers.sophia import Sophia
from unlearn_core.settings.run_config import RunConfig


def make_rail(context: RunContext) -> GuardRail | None:
    """The run's guard rail; None where the update is not constrained."""
    kind = context.config.guard_rail.kind
    return None if kind == "none" else GUARD_RAILS[kind](context)


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of step `step`, from 1, after warm-up and decay."""
    schedule, rate = config.schedule, config.optimizer.learning_rate
    if step <= schedule.warmup:
        return rate * step / schedule.warmup
    if schedule.decay == "linear":
        return rate * max(0, schedule.steps - step + 1) / max(1, schedule.steps - schedule.warmup)
    return rate


class Update:
    """Takes steps along a method's objective. P: trained parameters, in the context's one vector."""

    def __init__(self, context: RunContext, method: Method) -> None:
        self.context, self.method = context, method
        self.model = LanguageModel(context.model)
        self.optimizer = self._new_optimizer()
        # An alternating method's descent has an optimizer of its own.
        self.descender = self._new_optimizer() if method.alternates else None
        self.rail = make_rail(context)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        settings, values = self.context.config.optimizer, [self.context.adapter.values]
        rate, decay = settings.learning_rate, settings.weight_decay
        if settings.name == "sgd":
            return torch.optim.SGD(values, rate, momentum=settings.momentum, weight_decay=decay)
        kind = torch.optim.AdamW if settings.name == "adamw" else OPTIMIZERS[settings.name]
        optimizer: torch.optim.Optimizer = kind(values, rate, weight_decay=decay)
        return optimizer

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers of the run, by the names that a checkpoint gives them."""
        return {"optimizer": self.optimizer, **({"descender": self.descender} if self.descender else {})}

    def gradient(self, objective: Objective) -> tuple[dict[str, float], Tensor | None]:
        """Writes the optimizer's gradient into the adapter; returns values to record and the retain gradient.

        A guard rail projects the forget part; the retain part would lose its descent along the very rows it follows.
        """
        context, rail, adapter = self.context, self.rail, self.context.adapter
        forget, retain = adapter.gradient_of(objective.forget), None
        if self.method.scales_gradient:
            forget *= self.method.forget_gradient_scale(context)
        if context.config.as_run.leftover_gradients and rail and rail.leftover is not None:
            forget += rail.leftover
        forget = masked(forget, context.mask)
        if objective.retain is not None:
            retain = masked(adapter.gradient_of(objective.retain), context.mask)
        total = forget if retain is None else forget + retain
        if rail and context.config.guard_rail.apply_to == "gradient":
            before, after = forget, rail.project_gradient(forget)
            adapter.gradient.copy_(after if retain is None else after + retain)
        else:
            before, after = total, rail.project_gradient(total) if rail else total
            adapter.gradient.copy_(total)
        norms = {"gradient_norm": before.norm().item(), "projected_gradient_norm": after.norm().item()}
        loss = objective.forget.item() + (objective.retain.item() if objective.retain is not None else 0.0)
        values = {"objective": loss, **objective.values, **norms, "removed_share": removed_share(*norms.values())}
        return {**values, **(rail.values() if rail else {})}, retain

    def measure_curvature(self, step: int, batch: Batch) -> int:
        """Updates the curvature of optimizers that use one, on labels sampled from the model; returns the tokens read.

        Gauss-Newton-Bartlett (arXiv 2305.14342, algorithm 2). The adapter's gradient is restored afterwards.
        """
        due = [each for each in self.optimizers().values() if isinstance(each, Sophia) and each.is_due(step)]
        if not due:
            return 0
        adapter = self.context.adapter
        training = adapter.gradient.clone()
        sets = [tokens for tokens in (batch.forget, batch.retain, batch.neighbour) if tokens]
        count = sum(int(tokens.labelled) for tokens in sets)
        losses = [per_token(self.context.model, tokens, loss_of_sampled_labels).sum() for tokens in sets]
        estimate = adapter.gradient_of(torch.stack(losses).sum() / count)
        for optimizer in due:
            optimizer.curvature(estimate, count)
        adapter.gradient.copy_(training)
        return sum(int(tokens.mask.sum()) for tokens in sets)

    def apply(self, step: int, retain_gradient: Tensor | None, before: Tensor) -> dict[str, float]:
        """The optimizer's step; with `apply_to = "update"` the update itself is projected by the guard rail.

        Adam scales every entry by itself and carries momentum from older bases, so a projected gradient alone does not
        keep its step out of the subspace (methods.md 1.3). Masked parameters stay fixed under momentum and decay.
        """
        context = self.context
        seen = context.adapter.gradient.norm().item()
        rate = learning_rate(context.config, step)
        update = self._take(self.optimizer, rate, before)
        recorded = {"learning_rate": rate}
        if isinstance(self.optimizer, Sophia):
            recorded["unclipped_share"] = self.optimizer.unclipped_share
        if context.mask is not None:
            recorded["masked_share"] = masked_share(context.mask)
        if self.rail and context.config.guard_rail.apply_to == "update":
            length = update.norm().item()
            projected = self.rail.project_out(update, retain_gradient, length / seen if seen else 0.0)
            recorded["removed_share"] = removed_share(length, projected.norm().item())
            with torch.no_grad():
                context.adapter.values.copy_(before + projected)
            self._hold(before)
            update = projected
        context.adapter.scatter()
        return {**recorded, "update_norm": update.norm().item()}

    def descend(self, step: int, batch: Batch) -> None:
        """The other half of an alternating step: descent on the retain loss, by an optimizer of its own."""
        assert self.descender
        adapter = self.context.adapter
        adapter.scatter()
        gradient = adapter.gradient_of(self.method.descent(self.model, batch, self.context.reference))
        if torch.isfinite(gradient).all():  # else the next step's loss tells
            adapter.gradient.copy_(masked(gradient, self.context.mask))
            rate = learning_rate(self.context.config, step) * self.method.descent_rate
            self._take(self.descender, rate, adapter.values.detach().clone())
            adapter.scatter()

    def _take(self, optimizer: torch.optim.Optimizer, rate: float, before: Tensor) -> Tensor:
        """One step of an optimizer along the adapter's gradient, which it clears; the change from `before` (P,)."""
        adapter, limit = self.context.adapter, self.context.config.optimizer.max_gradient_norm
        norm = adapter.gradient.norm().item()
        if limit and norm > limit:
            adapter.gradient.mul_(limit / norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        adapter.gradient.zero_()
        self._hold(before)
        return adapter.values.detach() - before

    def _hold(self, before: Tensor) -> None:
        """Sets the parameters that the mask fixes back to `before`, to the bit."""
        if self.context.mask is not None:
            with torch.no_grad():
                values = self.context.adapter.values
                values.copy_(held(values, before, self.context.mask))
