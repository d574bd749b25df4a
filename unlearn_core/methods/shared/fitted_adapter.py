"""An adapter fitted to the forget windows: the task vector, and the reinforced model of Who's Harry Potter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn_core.guard_rails.shared.subspace import RetainSubspace
from unlearn_core.model.batches import collate
from unlearn_core.model.losses import nll
from unlearn_core.settings.errors import ConfigError

if TYPE_CHECKING:
    from unlearn_core.context import RunContext


def put(context: RunContext, numbers: Tensor) -> None:
    """Makes `numbers` (P,) those of the run's adapter."""
    with torch.no_grad():
        context.adapter.values.copy_(numbers)
    context.adapter.scatter()


def reinforced(context: RunContext, steps: int, rate: float) -> Tensor:
    """The adapter (P,) after `steps` of AdamW down the loss of forget windows; the run's own parameters do not change.

    The same for the same seed. An adapter that a run goes on from keeps its A: only then is what the fit adds to the
    weights B - B_0 times A, which can be scaled. Raises ConfigError where the loss is not finite.
    """
    own = context.adapter.values.detach().clone()
    fixed = [
        part for name, part in context.adapter.parts().items() if context.config.model.adapter and ".lora_A" in name
    ]
    optimizer = torch.optim.AdamW([context.adapter.values], rate, weight_decay=0.0)
    was_training = context.model.training
    torch.manual_seed(context.config.seed)
    context.model.train()
    try:
        for number in range(1, steps + 1):
            context.report("fitting an adapter to the forget text", f"{number} of {steps}")
            windows = context.draw("fit", context.windows.forget, number, context.config.schedule.batch_size)
            loss = nll(context.model, collate(windows, context.pad_id, context.device)).token_mean
            if not torch.isfinite(loss):
                raise ConfigError(
                    f"method.fit_rate is {rate}; after {number - 1} of {steps} steps of the fit the loss is no number "
                    "any more. Lower it."
                )
            gradient = context.adapter.gradient_of(loss)
            for part in fixed:
                gradient[part] = 0
            context.adapter.gradient.copy_(gradient)
            optimizer.step()
            context.adapter.scatter()
        return context.adapter.values.detach().clone()
    finally:
        context.adapter.gradient.zero_()
        put(context, own)
        context.model.train(was_training)


def negated(context: RunContext, fitted: Tensor, amount: float) -> Tensor:
    """The adapter (P,) that adds -amount times what `fitted` adds: its A, and B_0 - amount * (B - B_0).

    B_0 is 0 where the run began with a fresh adapter. The scale belongs to B alone: A and B both negated would be the
    fitted adapter again.
    """
    numbers, start = fitted.clone(), context.loaded.start or {}
    for name, part in context.adapter.parts().items():
        if ".lora_B" in name:
            before = start[name].reshape(-1).to(fitted) if name in start else 0.0
            numbers[part] = before - amount * (fitted[part] - before)
    return numbers


def off_retain_gradients(context: RunContext, fitted: Tensor, samples: int) -> Tensor:
    """`fitted` (P,), its B projected orthogonally to the gradients of single retain windows.

    The gradients are those of B where the dial is at 0, with A as fitted: one window, one row of length P.
    """
    own, was_training = context.adapter.values.detach().clone(), context.model.training
    start, rows = negated(context, fitted, 0.0), []
    fixed = [part for name, part in context.adapter.parts().items() if ".lora_B" not in name]
    put(context, start)
    context.model.eval()
    try:
        for number, window in enumerate(context.draw("orthogonal", context.windows.retain, 1, samples), 1):
            context.report("gradients of retain texts", f"{number} of {samples}")
            row = context.adapter.gradient_of(
                nll(context.model, collate([window], context.pad_id, context.device)).token_mean
            )
            for part in fixed:
                row[part] = 0
            rows.append(row)
    finally:
        put(context, own)
        context.model.train(was_training)
    space = RetainSubspace.fit(torch.stack(rows))
    return start + space.project_out(fitted - start) if space else fitted
