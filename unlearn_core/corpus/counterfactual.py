"""Forget windows with a stand-in in the target's place, token by token beside the original (arXiv 2407.16997)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unlearn_core.corpus.stand_ins import cased, words_of
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import tokens_of
from unlearn_core.model.window import Window

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


@dataclass(frozen=True)
class Twin:
    """A window with a stand-in. `pairs`: (index of a labelled token in the window, index of the same token here)."""

    window: Window
    pairs: tuple[Span, ...]


class Counterfactuals:
    """Makes twins of windows. `partial`: words of a name count as the target where they stand alone ("Harry")."""

    def __init__(self, target: Target, tokenizer: PreTrainedTokenizerBase, partial: bool) -> None:
        self.target, self.tokenizer = target, tokenizer
        words = words_of(target.name)
        named = partial and len(words) > 1 and not target.is_pattern
        self.parts = [word for word in words if word[:1].isupper()] if named else []

    def twin(self, window: Window, stand_in: str) -> Twin:
        """The window with a stand-in for the target and for its parts.

        Tokens that a tokenizer has joined with the target differ and have no pair.
        """
        text, places = self.replaced(window.text, "")
        changed, others = self.replaced(window.text, stand_in)
        start, special = self._place(window, text)
        ids, own = self._encoded(text, places, special)
        new, other = self._encoded(changed, others, special)
        ids, new = [*ids, *self._behind(window, ids, start)], [*new, *self._behind(window, ids, start)]
        pairs = [(here, there) for here, there in aligned(ids, own, new, other) if here >= start]
        begin = pairs[0][1] if start and pairs else 0
        inside = [(here - start, there - begin) for here, there in pairs if here < start + len(window)]
        end = max((there for _, there in inside), default=0) + 1
        first = max(1, window.first_loss)
        labelled = tuple((here, there) for here, there in inside if here >= first and there)
        return Twin(replace(window, ids=tuple(new[begin : begin + end]), first_loss=1), labelled)

    def replaced(self, text: str, stand_in: str) -> tuple[str, list[Span]]:
        """The text with the stand-in, and where in it that stands; without one, the text and the target's places."""
        text = self.target.normal(text)
        pieces, places, end, length = [], [], 0, 0
        for start, stop, part in self._matches(text):
            new = text[start:stop]
            if stand_in:
                new = cased(words_of(stand_in)[part] if part is not None else stand_in, new)
            pieces += [text[end:start], new]
            length += start - end
            places.append((length, length + len(new)))
            length, end = length + len(new), stop
        return "".join([*pieces, text[end:]]), places

    def _matches(self, text: str) -> list[tuple[int, int, int | None]]:
        """(start, end, which word of the target; None: all of it) of everything that is replaced, in order."""
        marks: list[tuple[int, int, int | None]] = [(start, end, None) for start, end in self.target.find(text)]
        words = words_of(self.target.name)
        for part in self.parts:
            for match in re.finditer(rf"\b{re.escape(part)}\b", text):
                if all(match.end() <= start or match.start() >= end for start, end, _ in marks):
                    marks.append((*match.span(), words.index(part)))
        return sorted(marks, key=lambda mark: mark[:2])

    def _encoded(self, text: str, places: Sequence[Span], special: bool) -> tuple[list[int], list[Span]]:
        """Token ids of a text, and the tokens (first, behind the last) of its places; places that touch are one."""
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        merged: list[Span] = []
        for place in places:
            if inside := tokens_of(encoded["offset_mapping"], *place):
                if merged and inside[0] < merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(merged[-1][1], inside[-1] + 1))
                else:
                    merged.append((inside[0], inside[-1] + 1))
        return list(encoded["input_ids"]), merged

    def _place(self, window: Window, text: str) -> tuple[int, bool]:
        """Where in its text's tokens a window begins, and whether these have the tokenizer's special ones."""
        for special in (True, False):
            ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            for start in range(len(ids)):
                there = ids[start : start + len(window)]
                if tuple(there) == window.ids[: len(there)] and len(there) >= len(window) - 1:
                    return start, special
        raise ValueError(f"the window of {window.source} {window.place} is no part of its text")

    def _behind(self, window: Window, ids: Sequence[int], start: int) -> tuple[int, ...]:
        """The end token of a pair, which is not in its text."""
        return window.ids[len(ids) - start :]


def aligned(ids: Sequence[int], places: Sequence[Span], other: Sequence[int], others: Sequence[Span]) -> list[Span]:
    """(index in ids, index in other) of the tokens outside of the places that stand for the same text.

    Between two places both have the same tokens, but for some next to a place that a tokenizer has joined with it.
    """
    if len(places) != len(others):
        return []
    begins = [(0, 0), *((end, until) for (_, end), (_, until) in zip(places, others, strict=True))]
    ends = [*((start, there) for (start, _), (there, _) in zip(places, others, strict=True)), (len(ids), len(other))]
    pairs: list[Span] = []
    for (start, there), (stop, until) in zip(begins, ends, strict=True):
        room = min(stop - start, until - there)
        same = next((n for n in range(room) if ids[start + n] != other[there + n]), room)
        back = next((n for n in range(room - same) if ids[stop - 1 - n] != other[until - 1 - n]), room - same)
        pairs += [(start + n, there + n) for n in range(same)]
        pairs += [(stop - n, until - n) for n in range(back, 0, -1)]
    return pairs
