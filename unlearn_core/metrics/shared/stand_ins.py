"""What the model as given says of stand-ins that no step is trained with, on the windows that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.model.batches import MOST_LABELS, collate, spread
from unlearn_core.model.losses import LanguageModel
from unlearn_core.model.teacher import Teacher, of_stand_ins
from unlearn_core.model.window import Window

LEAST = 1e-8  # probability that is told from 0


@dataclass(frozen=True)
class HeldOut:
    """`teacher`: its distributions. `level`: how far it is itself, about one stand-in, from what it says of the others.

    A model that is no further from the teacher than that, in nats per token, treats the target as one more stand-in.
    `loss`: forget loss of the same windows about stand-ins, in nats per token of the target's own windows.
    """

    teacher: Teacher
    level: float
    loss: float


@torch.no_grad()
def held_out(model: LanguageModel, counterfactuals: Counterfactuals, windows: Sequence[Window], pad_id: int) -> HeldOut:
    """Window by window, so that rounding and memory do not depend on their number. `model`: as given."""
    names = counterfactuals.held_out
    labels: list[tuple[int, ...]] = []
    means, levels, losses, count = [], [], 0.0, 0
    for window in windows:
        twins = counterfactuals.twins([window], names)
        (own,), (of_each,) = of_stand_ins(model, [window], twins, pad_id)
        chosen = spread(range(len(own)), MOST_LABELS)
        each = torch.stack(of_each)[:, chosen]
        mean = each.mean(0)
        labels.append(tuple(own[place] for place in chosen))
        means.append(mean)
        if chosen:
            others = (mean * len(names) - each) / (len(names) - 1)
            apart = others * (others.clamp_min(LEAST).log() - each.clamp_min(LEAST).log())
            levels.append(apart.sum(-1).mean().item())
        labelled = [twin.window for twin in twins[0] if twin.window.first_loss < len(twin.window)]
        if labelled:
            losses += model.nll(collate(labelled, pad_id, model.device)).sum.sum().item() / len(names)
        count += len(window) - max(1, window.first_loss)
    level = sum(levels) / max(1, len(levels))
    return HeldOut(Teacher(tuple(labels), tuple(means)), level, losses / max(1, count))
