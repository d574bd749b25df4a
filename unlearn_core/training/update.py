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
from unlearn_core.settings.sections import separate_states


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
        # So has the retain gradient where the settings ask for it; weights decay once, in the other's update.
        self.retain_optimizer = self._new_optimizer(decays=False) if separate_states(context.config) else None
        self.rail = make_rail(context)

    def take_settings(self, method: Method, fresh: bool) -> None:
        """Goes on with the settings that the context has by now. `fresh`: a new guard rail begins at this step."""
        self.method = method
        if self.rail is None or self.rail.settings != self.context.config.guard_rail:
            self.rail = make_rail(self.context)
            if self.rail and fresh:
                self.rail.start()
        if separate_states(self.context.config) != (self.retain_optimizer is not None):
            self.retain_optimizer = None if self.retain_optimizer else self._new_optimizer(decays=False)

    def _new_optimizer(self, decays: bool = True) -> torch.optim.Optimizer:
        settings, values = self.context.config.optimizer, [self.context.adapter.values]
        rate, decay = settings.learning_rate, settings.weight_decay if decays else 0.0
        if settings.name == "sgd":
            return torch.optim.SGD(values, rate, momentum=settings.momentum, weight_decay=decay)
        kind = torch.optim.AdamW if settings.name == "adamw" else OPTIMIZERS[settings.name]
        optimizer: torch.optim.Optimizer = kind(values, rate, weight_decay=decay)
        return optimizer

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers of the run, by the names that a checkpoint gives them."""
        named = {"optimizer": self.optimizer, "descender": self.descender, "retain_optimizer": self.retain_optimizer}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    def gradient(self, objective: Objective) -> tuple[dict[str, float], Tensor | None]:
        """Writes the optimizer's gradient into the adapter; returns values to record and the retain gradient.

        A guard rail projects the forget part; the retain part would lose its descent along the very rows it follows.
        Where the retain gradient has an optimizer of its own, that of the other is the forget part alone.
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
            adapter.gradient.copy_(forget if self.retain_optimizer else total)
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
        context, gradient = self.context, self.context.adapter.gradient
        rate = learning_rate(context.config, step)
        own = retain_gradient if self.retain_optimizer else None  # what the other optimizer has not seen
        seen = (gradient if own is None else gradient + own).norm().item()
        update = self._take(self.optimizer, rate, before, seen)
        recorded = {"learning_rate": rate}
        if isinstance(self.optimizer, Sophia):
            recorded["unclipped_share"] = self.optimizer.unclipped_share
        if context.mask is not None:
            recorded["masked_share"] = masked_share(context.mask)
        if self.projects_updates:
            assert self.rail
            length, projected = update.norm().item(), self.rail.project_out(update)
            del update
            recorded["removed_share"] = removed_share(length, projected.norm().item())
            added = self._retain_update(retain_gradient, rate, before, seen, length)
            self._move(before, projected if added is None else projected.add_(added))
        context.adapter.scatter()
        return recorded

    @property
    def projects_updates(self) -> bool:
        """Whether every update of an optimizer goes through the guard rail."""
        return self.rail is not None and self.context.config.guard_rail.apply_to == "update"

    def _retain_update(
        self, gradient: Tensor | None, rate: float, before: Tensor, seen: float, length: float
    ) -> Tensor | None:
        """What the retain gradient (P,) adds to the projected update; None where there is nothing to add.

        `seen`, `length`: norms of the sum of both gradients, and of the update before it was projected.
        """
        assert self.rail
        if gradient is None:
            return None
        if self.retain_optimizer is None:
            return self.rail.retain_step(gradient, length / seen if seen else 0.0, length)
        with torch.no_grad():
            self.context.adapter.values.copy_(before)
        self.context.adapter.gradient.copy_(gradient)
        return self.rail.project_retain(self._take(self.retain_optimizer, rate, before, seen))

    def descend(self, step: int, batch: Batch) -> None:
        """The other half of an alternating step: descent on the retain loss, by an optimizer of its own."""
        assert self.descender
        adapter = self.context.adapter
        adapter.scatter()
        gradient = adapter.gradient_of(self.method.descent(self.model, batch, self.context.reference))
        if not torch.isfinite(gradient).all():
            return  # the next step's loss tells
        adapter.gradient.copy_(masked(gradient, self.context.mask))
        before = adapter.values.detach().clone()
        rate = learning_rate(self.context.config, step) * self.method.descent_rate
        update = self._take(self.descender, rate, before, adapter.gradient.norm().item())
        if self.projects_updates:
            assert self.rail
            projected = self.rail.project_retain(update)
            if projected is not update:
                self._move(before, projected)
        adapter.scatter()

    def _take(self, optimizer: torch.optim.Optimizer, rate: float, before: Tensor, norm: float) -> Tensor:
        """One step of an optimizer along the adapter's gradient, which it clears; the change from `before` (P,).

        `norm`: that of all gradients of this step together, which is clipped.
        """
        adapter, limit = self.context.adapter, self.context.config.optimizer.max_gradient_norm
        if limit and norm > limit:
            adapter.gradient.mul_(limit / norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        adapter.gradient.zero_()
        self._hold(before)
        return adapter.values.detach() - before

    def _move(self, before: Tensor, update: Tensor) -> None:
        """Makes the parameters `before + update`; those that the mask fixes stay at `before`."""
        with torch.no_grad():
            self.context.adapter.values.copy_(before + update)
        self._hold(before)

    def _hold(self, before: Tensor) -> None:
        """Sets the parameters that the mask fixes back to `before`, to the bit."""
        if self.context.mask is not None:
            with torch.no_grad():
                values = self.context.adapter.values
                values.copy_(held(values, before, self.context.mask))
