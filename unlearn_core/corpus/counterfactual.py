"""Forget windows with a stand-in in the target's place, token by token beside the original (arXiv 2407.16997)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from unlearn_core.corpus.stand_ins import cased, stand_ins, words_of
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import tokens_of
from unlearn_core.model.prompting import encode_with_offsets, ending_of
from unlearn_core.model.window import Begin, Twin, Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import BUNDLED_MODELS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

HELD_OUT = 4  # stand-ins that no step is trained with: what the model says of them is what it should say of the target


@dataclass(frozen=True)
class Encoded:
    """A text as tokens: ids, the characters [start, end) of each, and those of the names that are replaced in it."""

    ids: Sequence[int]
    offsets: Sequence[Span]
    places: Sequence[Span]

    def ended(self, behind: Sequence[int], length: int) -> Encoded:
        """With tokens behind a text of so many characters, which it does not have itself: the end token of a pair."""
        further = [(length + place, length + place + 1) for place in range(len(behind))]
        return replace(self, ids=[*self.ids, *behind], offsets=[*self.offsets, *further])

    def outside(self) -> dict[tuple[int, int, int], int]:
        """Of the tokens that are in no place: (start, end, how many of the same characters before it) -> index.

        Characters are counted as if all places were empty, which makes them the same whatever stands there.
        """
        known: dict[tuple[int, int, int], int] = {}
        for index, (start, end) in enumerate(self.offsets):
            if all(end <= begin or start >= stop for begin, stop in self.places):
                moved = sum(stop - begin for begin, stop in self.places if stop <= start)
                same = 0  # several tokens of one character: its bytes
                while (start - moved, end - moved, same) in known:
                    same += 1
                known[start - moved, end - moved, same] = index
        return known

    def tokens_in(self) -> list[Span]:
        """(first, behind the last) token of every place; of one without a token, where it would be."""
        spans = []
        for place in self.places:
            inside = tokens_of(self.offsets, *place)
            first = inside[0] if inside else sum(end <= place[0] for _, end in self.offsets)
            spans.append((first, inside[-1] + 1 if inside else first))
        return spans


@dataclass(frozen=True)
class Original:
    """The text of a window as tokens, the last `behind` of which are no text, and where in them the window begins.

    `special`: with the tokenizer's special tokens. `opening`: of the window's tokens the first ones that are not among
    these: BOS in front of what was cut out of the middle.
    """

    text: str
    encoded: Encoded
    outside: Mapping[tuple[int, int, int], int]
    start: int
    behind: int
    special: bool
    opening: int = 0


class Counterfactuals:
    """Invents stand-ins for a target and puts them into windows.

    `texts`: what the run reads, in which no stand-in may be. `limit`: tokens of the model's context. Raises ConfigError
    where the tokenizer cannot say which characters a token stands for, and for stand-ins by hand that have the target
    in them.
    """

    def __init__(
        self, config: RunConfig, tokenizer: PreTrainedTokenizerBase, limit: int, texts: Iterable[str] = ()
    ) -> None:
        if not tokenizer.is_fast:
            reason = "its tokenizer does not tell which characters a token stands for, so nothing can be put in place"
            fix = "Choose a model with a tokenizer.json, or another method"
            raise ConfigError(reason, field="model.source", value=config.model.source, fix=fix)
        self.config, self.tokenizer, self.limit = config, tokenizer, limit
        self.target = Target(config.data)
        if unfit := tuple(name for name in config.data.stand_ins if self.target.find(self.target.normal(name))):
            reason, fix = "a name with the target in it cannot stand for it", "Write others"
            raise ConfigError(reason, field="data.stand_ins", value=unfit, fix=fix)
        read = list(texts)
        self.name = self._usual(read) if self.target.is_pattern else self.target.name
        words = words_of(self.name)
        named = config.data.partial_names and len(words) > 1 and not self.target.is_pattern
        self.parts = [word for word in words if word[:1].isupper()] if named else []
        alone = replace(config.data, spellings=(), match="literal", whole_word=True, ignore_case=False)
        self._part_targets = [Target(replace(alone, target=part)) for part in self.parts]
        self._words = {word.lower() for text in read for word in words_of(text)}
        self._originals: dict[Window, Original | None] = {}
        self.held_out: tuple[str, ...] = ()
        self.held_out = self._held_out()

    def _held_out(self) -> tuple[str, ...]:
        """Invented ones; those by hand where nothing has the target's shape."""
        try:
            return tuple(self._invented(HELD_OUT, "held out"))
        except ConfigError:
            given = self.config.data.stand_ins
            if not given:
                raise
            if len(given) == 1:
                reason, fix = "how far names are from one another takes two of them", "Add another name"
                raise ConfigError(reason, field="data.stand_ins", value=given, fix=fix) from None
            return given

    def names(self, count: int, seed: str) -> list[str]:
        """`count` stand-ins, the same for a seed: of those in the run file, or else invented; none is held out."""
        if given := self.config.data.stand_ins:
            return random.Random(seed).sample(given, min(count, len(given)))
        return self._invented(count, seed)

    def _invented(self, count: int, seed: str) -> list[str]:
        bundled = self.config.model.source in BUNDLED_MODELS
        return stand_ins(self.name, count, seed, self._tokens, self._exists, bundled)

    def _usual(self, texts: Iterable[str]) -> str:
        """The text that a pattern matches most often: stand-ins have its shape."""
        matches = Counter(text[a:b] for text in map(self.target.normal, texts) for a, b in self.target.find(text))
        return max(matches, key=lambda text: (matches[text], text), default=self.target.name)

    def _tokens(self, name: str) -> int:
        return len(self.tokenizer(f" {name}", add_special_tokens=False)["input_ids"])

    def _exists(self, name: str) -> bool:
        own = {word.lower() for word in words_of(self.name)}
        return name in self.held_out or any(w.lower() in self._words and w.lower() not in own for w in words_of(name))

    def twins(self, windows: Iterable[Window], names: Sequence[str]) -> list[list[Twin]]:
        """Every window with each of the stand-ins."""
        return [[self.twin(window, name) for name in names] for window in windows]

    def twin(self, window: Window, stand_in: str) -> Twin:
        """The window with a stand-in for the target and for its parts.

        Tokens that a tokenizer has joined with the target differ and have no place; a window without the target, or
        which is not the text that it is of, has none at all. A twin that is longer than the model's context loses its
        start.
        """
        if window not in self._originals:
            self._originals[window] = self._original(window)
        was = self._originals[window]
        if was is None:
            return Twin(window, {}, {})
        text, spans = self.replaced(was.text, stand_in)
        behind = was.encoded.ids[len(was.encoded.ids) - was.behind :]
        new = self._encoded(text, spans, was.special).ended(behind, len(text))
        there = new.outside()
        pairs = {here: there[key] for key, here in was.outside.items() if key in there}
        pairs = {here: place for here, place in pairs.items() if was.encoded.ids[here] == new.ids[place]}
        return cut_out(window, was, new, pairs, self.limit)

    def replaced(self, text: str, stand_in: str) -> tuple[str, list[Span]]:
        """The text with the stand-in, and where in it that stands; without one, the text and the target's places."""
        text = self.target.normal(text)
        pieces, places, end, length = [], [], 0, 0
        for start, stop, part in self._matches(text):
            new = self._in_place_of(text[start:stop], part, stand_in) if stand_in else text[start:stop]
            pieces += [text[end:start], new]
            length += start - end
            places.append((length, length + len(new)))
            length, end = length + len(new), stop
        return "".join([*pieces, text[end:]]), places

    def renamed(self, text: str, stand_in: str) -> str:
        """A text about a stand-in with the target in its place, in the capitals in which that stands there."""
        words, own = words_of(stand_in), words_of(self.name)
        pairs = [(stand_in, self.name)]
        if self.parts and len(words) == len(own):
            pairs += zip(words, own, strict=True)
        for old, new in pairs:
            name = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)", re.IGNORECASE)
            text = name.sub(partial(_in_its_capitals, old, new), text)
        return text

    def _in_place_of(self, old: str, part: int | None, stand_in: str) -> str:
        """The stand-in, or its word in place of the target's (`part`), in the capitals in which that stands there."""
        words, own = words_of(stand_in), words_of(self.name)
        whole = part is None or len(words) != len(own)
        new = stand_in if whole else words[part or 0]
        usual = self.name if part is None else own[part]
        return new if old == usual else new.lower() if old.islower() else cased(new, old)

    def _matches(self, text: str) -> list[tuple[int, int, int | None]]:
        """(start, end, which word of the target; None: all of it) of everything that is replaced, in order."""
        marks: list[tuple[int, int, int | None]] = [(start, end, None) for start, end in self.target.find(text)]
        words = words_of(self.name)
        for part, found in zip(self.parts, self._part_targets, strict=True):
            for begin, stop in found.find(text):
                if all(stop <= start or begin >= end for start, end, _ in marks):
                    marks.append((begin, stop, words.index(part)))
        return sorted(marks, key=lambda mark: mark[:2])

    def _encoded(self, text: str, places: Sequence[Span], special: bool) -> Encoded:
        if special:
            return Encoded(*encode_with_offsets(self.tokenizer, text), places)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Encoded(encoded["input_ids"], encoded["offset_mapping"], places)

    def _original(self, window: Window) -> Original | None:
        """The window's text as tokens, in which the window is found; None where it is no part of them."""
        text, places = self.replaced(window.text, "")
        most = max(1, len(ending_of(self.tokenizer)))
        for special in (True, False):
            encoded = self._encoded(text, places, special)
            for opening in sorted({0, window.opening}):
                ids = window.ids[opening:]
                if (start := _place(encoded.ids, ids, most)) is not None:
                    behind = ids[len(encoded.ids) - start :]
                    ended = encoded.ended(behind, len(text))
                    return Original(text, ended, ended.outside(), start, len(behind), special, opening)
        return None


def _place(text: Sequence[int], ids: Sequence[int], behind: int) -> int | None:
    """Where in a text's tokens some of them stand; the last `behind` may be beyond its end. None where they do not."""
    for start in range(len(text)):
        there = tuple(text[start : start + len(ids)])
        if there == tuple(ids[: len(there)]) and len(there) >= len(ids) - behind:
            return start
    return None


def cut_out(window: Window, was: Original, new: Encoded, pairs: Mapping[int, int], limit: int) -> Twin:
    """The twin of a window out of its text with a stand-in. `pairs`: index of a token in the text -> of it in `new`."""
    start, end = was.start, was.start + len(window) - was.opening
    names = was.encoded.tokens_in()
    inside = {here: there for here, there in pairs.items() if start <= here < end}
    starts = [(here, there) for here, there in begins(names, pairs) if start < here < end and there < len(new.ids)]
    stop = max([*inside.values(), *(there for _, there in starts)], default=-1) + 1
    if end == len(was.encoded.ids):
        stop = len(new.ids)  # a text that ends with the name has all of it
    cut, opening = min(inside.values(), default=0) if start else 0, was.opening
    if stop - cut + opening > limit:
        opening = window.opening
        cut = stop - limit + opening
    before, behind = was.opening - start, opening - cut  # what makes an index in a text one in the window, in the twin
    first = max(1, window.first_loss) - before
    named = {
        here + before: Begin(new.ids[there], any(start <= begin < here for begin, _ in names))
        for here, there in starts
        if here >= first and there + behind > 0 and there >= cut
    }
    every = (*inside.items(), *starts)
    places = {
        here + before: there + behind for here, there in every if here >= first and there >= cut and there + behind
    }
    if not any(begin < end and behind > start for begin, behind in names):
        places, named = {}, {}  # cut off from the target, a window says nothing about it
    label = max((there + 1 + behind for here, there in inside.items() if here < first), default=max(1, opening))
    ids = (*window.ids[:opening], *new.ids[cut:stop])
    return Twin(replace(window, ids=ids, first_loss=label), places, named)


def begins(names: Iterable[Span], pairs: Mapping[int, int]) -> Iterator[Span]:
    """(index, index in the twin) of the first token of every name that is predicted from the same text on both sides.

    `names`: the tokens of each in the window's text.
    """
    end = 0
    for here, behind in names:
        while here > end and here - 1 not in pairs:  # a blank that is joined with one of the two names alone
            here -= 1
        if here > end:
            yield here, pairs[here - 1] + 1
        end = max(end, behind)


def _in_its_capitals(usual: str, new: str, match: re.Match[str]) -> str:
    """`new` as it is where the match is as usual, else in the capitals of the match."""
    return new if match.group() == usual else cased(new, match.group())
