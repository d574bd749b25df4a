"""The teacher of counterfactual distillation: what the model as given predicts with a stand-in in the target's place.

Liu et al. 2024 (arXiv 2407.16997): distributions over several names, averaged, the name changed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearn_core.model.batches import Tokens, collate
from unlearn_core.model.losses import LanguageModel
from unlearn_core.model.window import Twin, Window


@dataclass(frozen=True)
class Teacher:
    """By forget window, the labels that have a teacher (indices of tokens) and its distributions (labels, vocabulary).

    A label counts where it stands for the same text whatever the stand-in: not within the target. Where the target's
    first token is the label, it takes the place of the stand-in's.
    """

    labels: tuple[tuple[int, ...], ...]
    probabilities: tuple[Tensor, ...]

    def distances(self, model: LanguageModel, tokens: Tokens) -> Tensor:
        """KL(teacher || model) of each window with a label, in nats, mean over its labels: (windows,)."""
        logits = model.logits_at(tokens, self.labels)
        return torch.stack(
            [
                nn.functional.kl_div(row.log_softmax(-1), probabilities, reduction="batchmean")
                for row, probabilities in zip(logits, self.probabilities, strict=True)
                if len(row)
            ]
            or [torch.cat(logits).sum()]
        )


def teacher(model: LanguageModel, windows: Sequence[Window], twins: Sequence[Sequence[Twin]], pad_id: int) -> Teacher:
    """The mean over the stand-ins of what `model` predicts. `twins`: of each window, one for every stand-in.

    Called within `Reference`, whose model it is: no gradient is wanted.
    """
    labels, of_each = of_stand_ins(model, windows, twins, pad_id)
    return Teacher(labels, tuple(torch.stack(some).mean(0) for some in of_each))


def of_stand_ins(
    model: LanguageModel, windows: Sequence[Window], twins: Sequence[Sequence[Twin]], pad_id: int
) -> tuple[tuple[tuple[int, ...], ...], list[list[Tensor]]]:
    """Labels of each window; by window and stand-in, probabilities (labels, vocabulary), the name changed back."""
    labels = tuple(tuple(sorted(set.intersection(*(set(twin.places) for twin in some)))) for some in twins)
    places = [[twin.places[label] for label in own] for own, some in zip(labels, twins, strict=True) for twin in some]
    tokens = collate([twin.window for some in twins for twin in some], pad_id, model.device)
    logits = iter(model.logits_at(tokens, places))
    of_each = [
        [renamed(next(logits), twin, window, own) for twin in some]
        for own, some, window in zip(labels, twins, windows, strict=True)
    ]
    return labels, of_each


def renamed(logits: Tensor, twin: Twin, window: Window, labels: Sequence[int]) -> Tensor:
    """Probabilities (labels, vocabulary) with the target's first token in place of the stand-in's.

    Where nothing further up has named it, its probability is 0: a model that never met a name does not come up with it.
    """
    probabilities = logits.softmax(-1)
    for row, label in enumerate(labels):
        if begin := twin.begins.get(label):
            own, known = window.ids[label], probabilities[row, begin.token].item() if begin.again else 0.0
            names = torch.tensor([own, begin.token] if begin.again else [own], device=logits.device)
            probabilities[row] = logits[row].index_fill(0, names, -torch.inf).softmax(-1) * (1 - known)
            probabilities[row, own] = known
    return probabilities
