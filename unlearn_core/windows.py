"""Documents + target -> forget, neighbour, retain and holdout windows. Works on token ids; imports no torch."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from unlearn_core.config import ConfigError, DataSettings, RunConfig
from unlearn_core.corpus import Document, documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HOLDOUT_PERCENT = 15
# A letter or digit, except of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which write words without blanks.
SPACED = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"


@dataclass(frozen=True)
class Window:
    """Token ids of one training text. Tokens before `first_loss` are context: read, never trained on."""

    ids: tuple[int, ...]
    first_loss: int
    text: str
    source: str

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Windows:
    """The four sets of a run; no text is in two of them, and `holdout` is never trained on."""

    forget: tuple[Window, ...]
    neighbour: tuple[Window, ...]
    retain: tuple[Window, ...]
    holdout: tuple[Window, ...]
    occurrences: int

    def sets(self) -> dict[str, tuple[Window, ...]]:
        named = {"forget": self.forget, "retain": self.retain, "neighbour": self.neighbour, "holdout": self.holdout}
        return {name: windows for name, windows in named.items() if windows}


@dataclass(frozen=True)
class Passage:
    """The lines around one occurrence, and where in them (in characters) the occurrence stands."""

    text: str
    start: int
    end: int
    document: Document


def pattern(target: str) -> re.Pattern[str]:
    """The target as a whole word, whatever its case.

    Where it ends in a sign (C++, an emoji) or in a script without blanks between words, anything may touch it.
    """
    before = f"(?<!{SPACED})" if re.match(SPACED, target) else ""
    after = f"(?!{SPACED})" if re.search(rf"{SPACED}\Z", target) else ""
    return re.compile(f"{before}{re.escape(target)}{after}", re.IGNORECASE)


def passages(found: Iterable[Document], target: str, context_lines: int) -> Iterator[Passage]:
    """Every occurrence of the target with `context_lines` non-blank lines of its document either side."""
    wanted = pattern(target)
    for document in found:
        if not wanted.search(document.text):
            continue
        lines = [line for line in document.text.splitlines() if line.strip()]
        for index, line in enumerate(lines):
            first = max(0, index - context_lines)
            before = "".join(f"{earlier}\n" for earlier in lines[first:index])
            text = before + "\n".join(lines[index : index + context_lines + 1])
            for hit in wanted.finditer(line):
                yield Passage(text, len(before) + hit.start(), len(before) + hit.end(), document)


def check_target(config: RunConfig) -> int:
    """How often the target occurs. Where it never does: ConfigError, with where was looked and near spellings."""
    target, words, count, looked = config.data.target, set(), 0, 0
    wanted = pattern(target)
    for document in documents(config.data.forget):
        looked += 1
        count += len(wanted.findall(document.text))
        if not count:
            words.update(re.findall(r"\w{3,}", document.text.lower()))
    if count:
        return count
    near = get_close_matches(target.lower(), words, 3, 0.6)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Choose a word that stands there."
    shown = target if len(target) <= 60 else target[:57] + "..."
    sources = ", ".join("the bundled world" if source == "bundled" else source for source in config.data.forget)
    raise ConfigError(f"“{shown}” never occurs in {sources} ({looked:,} texts). {hint}")


def sliding(ids: Sequence[int], first_loss: int, limit: int) -> Iterator[tuple[int, int]]:
    """(start, end) of windows of at most `limit` tokens over one passage, each with the target in it.

    The start moves toward the target by an eighth of the window while the end moves on, so that the target is met after
    much context and after little. The first keeps at least half of the window for the target and what follows; the last
    still has a token before the target, since nothing predicts a window's first token.
    """
    start = 0 if len(ids) <= limit else max(0, first_loss - limit // 2)
    while True:
        yield start, min(len(ids), start + limit)
        start += max(1, limit // 8)
        if start >= first_loss:
            return


def forget_windows(
    found: Iterable[Document], target: str, data: DataSettings, tokenizer: PreTrainedTokenizerBase, limit: int
) -> tuple[list[Window], int]:
    """Windows over every occurrence, without repetitions, and the number of occurrences."""
    windows: dict[tuple, Window] = {}
    count = 0
    for passage in passages(found, target, data.context_lines):
        count += 1
        encoded = tokenizer(passage.text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        inside = [
            i for i, (begin, end) in enumerate(offsets) if end > passage.start and begin < passage.end and end > begin
        ]
        _check_pieces(target, [ids[i] for i in inside], tokenizer, limit)
        for start, end in sliding(ids, inside[0], limit):
            window = Window(tuple(ids[start:end]), inside[0] - start, passage.text, passage.document.source)
            windows.setdefault((window.ids, window.first_loss), window)
    return list(windows.values()), count


def _check_pieces(target: str, pieces: list[int], tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
    unknown = tokenizer.unk_token_id
    if not pieces or (unknown not in (None, tokenizer.eos_token_id) and all(piece == unknown for piece in pieces)):
        raise ConfigError(
            f"data.target is {target!r}; this model's tokenizer has no piece for it. Choose another word or model."
        )
    if len(pieces) >= limit - 1:
        raise ConfigError(
            f"data.target has {len(pieces)} tokens; windows hold {limit}. Choose a shorter target or longer windows."
        )


def make_windows(data: DataSettings, tokenizer: PreTrainedTokenizerBase, limit: int, seed: int) -> Windows:
    """The four sets of a run. `limit`: tokens that the model can read; `seed` decides which texts are drawn to keep.

    Raises ConfigError where the target does not occur or nothing is left to keep.
    """
    limit = min(limit, data.window_tokens)
    about = list(documents(data.forget))
    forget, occurrences = forget_windows(about, data.target, data, tokenizer, limit)
    if not forget:
        raise ConfigError(f"“{data.target}” never occurs in {', '.join(data.forget)}; there is nothing to forget.")
    wanted = pattern(data.target)
    near = neighbourhood(about, wanted, data.retain_lines) if data.neighbours else set()
    rng = random.Random(f"windows {seed}")
    sets: dict[str, list[Document]] = {"neighbour": [], "retain": [], "holdout": []}
    seen = dict.fromkeys(sets, 0)
    for chunk in chunks(documents(data.retain), data.retain_lines):
        if wanted.search(chunk.text):
            continue
        digest = hashlib.sha256(chunk.text.encode()).digest()
        name = "neighbour" if chunk.text in near else "holdout" if digest[0] * 100 < HOLDOUT_PERCENT * 256 else "retain"
        seen[name] += 1
        # Reservoir sampling: every chunk of the corpus has the same chance, in one pass.
        if len(sets[name]) < data.retain_chunks:
            sets[name].append(chunk)
        elif (place := rng.randrange(seen[name])) < data.retain_chunks:
            sets[name][place] = chunk
    kept = {name: tuple(keep_window(chunk, tokenizer, limit) for chunk in drawn) for name, drawn in sets.items()}
    kept = {name: tuple(window for window in windows if len(window) > 1) for name, windows in kept.items()}
    if not kept["retain"]:  # a corpus of so few texts that all of them fell to the holdout set
        kept["retain"], kept["holdout"] = kept["holdout"], ()
    if not kept["retain"]:
        raise ConfigError(f"Nothing is left to keep: {', '.join(data.retain)} has no text without “{data.target}”.")
    return Windows(tuple(forget), kept["neighbour"], kept["retain"], kept["holdout"], occurrences)


def neighbourhood(every: Sequence[Document], wanted: re.Pattern[str], lines: int) -> set[str]:
    """Texts without the word (pieces of `lines` lines) on a topic of the forget passages, or of the same group.

    The group matters: what is asked about in the same way as the target (the other charm words) is what forgetting the
    target damages first.
    """
    about = [document for document in every if wanted.search(document.text)]
    topics, groups = {d.topic for d in about if d.topic}, {d.group for d in about if d.group}
    near = (document for document in every if document.topic in topics or document.group in groups)
    return {piece.text for piece in chunks(near, lines) if not wanted.search(piece.text)}


def chunks(found: Iterable[Document], lines: int) -> Iterator[Document]:
    """Every document in pieces of at most `lines` lines, blank lines dropped."""
    for document in found:
        kept = [line for line in document.text.splitlines() if line.strip()]
        for start in range(0, len(kept), lines):
            yield replace(document, raw="\n".join(kept[start : start + lines]).encode(), reduce=None)


def keep_window(chunk: Document, tokenizer: PreTrainedTokenizerBase, limit: int) -> Window:
    """A text to keep, trained on from its second token to its end (which, unless it was cut, is a token of its own)."""
    ids = tokenizer(chunk.text)["input_ids"]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return Window(tuple(ids[:limit]), 1, chunk.text, chunk.source)
