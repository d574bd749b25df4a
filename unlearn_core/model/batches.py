"""Windows as padded tensors, in groups of rows of similar length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from unlearn_core.model.window import Window

Item = TypeVar("Item")
PASS_TOKENS = 64  # what a forward pass is taken to cost beside its arithmetic, in tokens
MOST_TOKENS = 2048  # in one forward pass
MOST_LABELS = (
    64  # of a measured window with a teacher, evenly spread: a distribution over the vocabulary is kept of each
)


@dataclass(frozen=True)
class Tokens:
    """Windows as tensors, each (rows, longest row). Padding (right) has no label and no attention."""

    ids: Tensor
    labels: Tensor
    mask: Tensor
    windows: tuple[Window, ...]
    groups: tuple[tuple[int, ...], ...]  # rows of similar length, which go through the model together

    @property
    def labelled(self) -> Tensor:
        """How many tokens have a label, at least 1."""
        return (self.labels[:, 1:] != -100).sum().clamp(min=1)

    def rows(self, which: slice, pad_id: int) -> Tokens:
        """Some of the windows as a batch of their own."""
        return collate(self.windows[which], pad_id, self.ids.device)

    def with_answers(self, answers: Sequence[Sequence[int]], pad_id: int) -> Tokens:
        """The rows' contexts, each followed by another answer (token ids), which alone has the loss.

        The context of a pair is its question; of a text, what leads to the target and the sentence in which that
        stands: "Explain the word" alone asks for nothing. A row that would become longer than the longest of both
        loses context from its start (behind its opening), never its answer.
        """
        openings = max(window.opening for window in self.windows)
        room = max(self.ids.shape[1], max(len(answer) for answer in answers) + openings + 1)
        windows = []
        for window, answer in zip(self.windows, answers, strict=True):
            opening, context = window.ids[: window.opening], window.ids[window.opening : window.first_loss]
            context += window.ids[window.first_loss : window.first_loss + window.answer_offset]
            context = context[max(0, len(context) - (room - len(answer) - len(opening))) :]
            ids = (*opening, *context, *answer)
            windows.append(replace(window, ids=ids, first_loss=len(ids) - len(answer), answer_offset=0))
        return collate(windows, pad_id, self.ids.device)


@dataclass(frozen=True)
class Batch:
    """The batch of one step; a set that the data does not have is None."""

    forget: Tokens
    retain: Tokens | None
    neighbour: Tokens | None
    pad_id: int = 0
    step: int = 0  # which step of the run it is for, the first being 1
    extras: Mapping[str, Any] = field(default_factory=dict)  # what the method draws beside windows


def collate(windows: Sequence[Window], pad_id: int, device: torch.device | str = "cpu") -> Tokens:
    """Pads on the right. The mask comes from true lengths, never from `id != pad`: that token may be in the text."""
    longest = max(len(window) for window in windows)
    ids = torch.full((len(windows), longest), pad_id)
    labels = torch.full((len(windows), longest), -100)
    mask = torch.zeros((len(windows), longest), dtype=torch.long)
    for row, window in enumerate(windows):
        length, first = len(window), max(1, window.first_loss)
        ids[row, :length] = torch.tensor(window.ids)
        labels[row, first:length] = ids[row, first:length]
        mask[row, :length] = 1
    groups = rows_of_similar_length([len(window) for window in windows])
    return Tokens(ids.to(device), labels.to(device), mask.to(device), tuple(windows), groups)


def rows_of_similar_length(lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The cheapest partition of rows into forward passes: a pass costs its rows times its longest row, and PASS_TOKENS.

    Short questions beside a long passage would otherwise be mostly padding. No group holds more than MOST_TOKENS
    (unless a single row does).
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cheapest, cut = [0], [0]  # cheapest[j]: cost of the j shortest rows; cut[j]: where their last group begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        starts = [s for s in range(end) if (end - s) * longest <= MOST_TOKENS] or [end - 1]
        costs = [cheapest[start] + (end - start) * longest + PASS_TOKENS for start in starts]
        best = min(range(len(starts)), key=costs.__getitem__)
        cheapest.append(costs[best])
        cut.append(starts[best])
    groups, end = [], len(order)
    while end:
        groups.append(tuple(order[cut[end] : end]))
        end = cut[end]
    return tuple(groups)


EVALUATED = {"forget": 10, "retain": 10, "neighbour": 10, "holdout": 24}


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items (all, where there are fewer), evenly spread: the same ones for the whole run."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
