"""The target as a matcher: finds a word, its spellings or a pattern in a text."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import regex

from unlearn_core.corpus.folding import BREAKS, DIVIDED, BytesFolding, Folded, Folding, undivided
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

if TYPE_CHECKING:
    from unlearn_core.corpus.reading.document import Document

# A letter or digit. Not one of a script that writes words without blanks (Thai, Lao, Tibetan, Burmese, Khmer, Tai,
# Balinese, Javanese, Japanese, Chinese) or writes particles onto the word (Korean).
UNSPACED = (
    r"\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f\u3005-\u3007\u3040-\u318f"
    r"\u31a0-\u31ff\u3400-\u9fff\ua960-\ua9ff\uaa60-\uaadf\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
SPACED = rf"[^\W_{UNSPACED}]"
# No whole word ends in front of a letter, nor in front of "_" with a letter behind it: that is a name in code, whereas
# an underscore at the end marks _italics_.
AFTER, BEFORE = rf"(?!_*{SPACED})", rf"(?<!{SPACED}_*)"
# Hebrew and Arabic write "and", "in", "to" and the article in front of the word that follows.
PREFIXES = "[ובהלכמש]{0,4}|[وف]?[بكلس]?(?:ال|ل)?"
WITH_PREFIXES = r"[\u0590-\u06ff]"
TONOS = re.compile(r"(?<=[\u0370-\u03ff\u0308])\u0301")
DIVIDED_WORD = re.compile(DIVIDED)
VARIED = re.compile(r"[\s'\"`-]+")  # signs that a text may have in other forms, so that they are in no literal
SECONDS_A_TEXT = 0.8  # the longest that a pattern may think about one text; of a long one, about a word
SECONDS_TO_JUDGE, SLOWEST = 1.0, 200_000  # after so many seconds it must have read so many characters in each


class Target:
    """A compiled target. Raises ConfigError for a pattern that cannot be, or that matches nothing at all."""

    def __init__(self, data: DataSettings) -> None:
        self.name = data.target
        self.is_pattern = data.match == "regex"
        self.form = "" if data.normalization == "none" else data.normalization
        self.ignore_case = data.ignore_case
        self.whole_word = data.whole_word
        self.folding = Folding(data.ignore_case)
        texts = [form for text in (data.target, *data.spellings) if text for form in self._forms(text)]
        self.spellings: Sequence[str] = sorted(dict.fromkeys(texts), key=len, reverse=True)
        flags = regex.MULTILINE | (regex.IGNORECASE if data.ignore_case else 0)
        source = "|".join(self._branches())
        self._compiled = self._compile(source, flags)
        self._word_by_word: Any = regex.compile(rf"(?:{source})|(\W)", flags) if self.is_pattern else None
        literals = [self._literal(text) for text in self.spellings]
        self._filters, self._bytes_folding = prefilters(literals), BytesFolding("".join(literals))
        self._spent, self._read = 0.0, 0

    # ---------------------------------------------------------------------------------------------- compiling

    def _branches(self) -> Iterator[str]:
        for text in self.spellings:
            if self.is_pattern:
                self._compile(text, 0)  # each on its own: "a)(b" is not a pattern although "(?:a)(b)" is
                yield bounded(text) if self.whole_word else f"(?:{text})"
            elif self.whole_word:
                before = before_word(text) if regex.match(SPACED, text) else ""
                after = AFTER if regex.search(rf"{SPACED}\Z", text) else ""
                yield f"{before}{spread(text)}{after}"
            else:
                yield spread(text)

    def _forms(self, text: str) -> Iterator[str]:
        """A pattern as it is; a text in plain signs, and as Greek capitals have it, which carry no accent."""
        text = self.normal(text)
        if self.is_pattern:
            yield text
            return
        text = self.folding.fold(text).text or text
        yield text
        parts = unicodedata.normalize("NFD", text)
        if self.ignore_case and TONOS.search(parts):
            yield unicodedata.normalize("NFC", TONOS.sub("", parts))

    def _compile(self, source: str, flags: int) -> Any:
        try:
            compiled = regex.compile(source, flags)
        except RecursionError:
            raise ConfigError("this pattern is nested too deeply", field="data.target", value=source) from None
        except regex.error as error:
            where = "" if error.pos is None else f" at position {error.pos}"
            reason = f"this is not a regular expression: {error.msg}{where}"
            raise ConfigError(reason, field="data.target", value=source) from None
        if self.is_pattern and compiled.match(""):
            reason = "this pattern matches nothing at all, so everywhere"
            raise ConfigError(reason, field="data.target", value=source)
        return compiled

    # ------------------------------------------------------------------------------------------------ finding

    def normal(self, text: str) -> str:
        """The text in the form that counts: offsets are offsets in it."""
        if not self.form or text.isascii():
            return text
        return unicodedata.normalize(cast(Any, self.form), text)

    def find(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of every occurrence, in order, none in another. `text` is in `normal` form.

        It is searched in plain signs (see `folding`); for a pattern, which may ask for others, as it is, too.
        """
        divided = ("-\n" in text or "-\r" in text or not text.isascii()) and DIVIDED_WORD.search(text)
        if text.isascii() and not divided:
            return self._spans(text)
        forms = [Folded(text)] if self.is_pattern else []
        forms.append(self.folding.fold(text))
        if any(sign in text for sign in BREAKS):
            forms.append(self.folding.fold(text, between=" "))
        if divided:
            forms.append(self.folding.fold(text, undivided=True))
        every = {form.span(*span) for form in dict.fromkeys(forms) for span in self._spans(form.text)}
        spans: list[tuple[int, int]] = []
        for start, end in sorted(every, key=lambda span: (span[0], -span[1])):
            if not spans or start >= spans[-1][1]:
                spans.append((start, end))
        return spans

    def _spans(self, text: str) -> list[tuple[int, int]]:
        if not self.is_pattern:
            return [hit.span() for hit in self._compiled.finditer(text)]
        began = time.thread_time()
        try:
            spans = [hit.span() for hit in self._compiled.finditer(text, timeout=SECONDS_A_TEXT)]
        except TimeoutError:
            if len(text) < SECONDS_A_TEXT * SLOWEST:
                raise self._too_slow() from None
            spans = list(self._spans_by_words(text))
        else:
            self._judge(time.thread_time() - began, len(text))
        return [(start, end) for start, end in spans if end > start]

    def _spans_by_words(self, text: str) -> Iterator[tuple[int, int]]:
        """The same of a long text. Whether the pattern goes on is seen at every sign between two words.

        Such a sign ends a search like a match of the target, which it never hides: of what begins at the same place,
        the target comes first.
        """
        place = judged = 0
        began = time.thread_time()
        while place <= len(text):
            try:
                hit = self._word_by_word.search(text, place, timeout=SECONDS_A_TEXT)
            except TimeoutError:
                raise self._too_slow() from None
            if hit is None:
                return
            if hit[self._word_by_word.groups] is None:
                yield hit.span()
            place = max(hit.end(), place + 1)
            if (now := time.thread_time()) - began > SECONDS_A_TEXT:
                self._judge(now - began, place - judged)
                began, judged = now, place

    def _judge(self, seconds: float, characters: int) -> None:
        """Raises ConfigError for a pattern that is slower than any that a person would wait for."""
        self._spent += seconds
        self._read += characters
        if self._spent > SECONDS_TO_JUDGE and self._read < SLOWEST * self._spent:
            raise self._too_slow()

    def replaced(self, text: str, stand_in: str) -> str:
        """The text with `stand_in` wherever the target stood."""
        parts, end = [], 0
        for start, stop in self.find(text):
            parts += [text[end:start], stand_in]
            end = stop
        return "".join([*parts, text[end:]])

    def _too_slow(self) -> ConfigError:
        return ConfigError(
            "this pattern takes too long on your text, since it tries the same letters in ever new ways",
            field="data.target",
            value=self.name,
            fix="Write it without a repetition inside a repetition",
        )

    # -------------------------------------------------------------------------------------------- the prefilter

    def may_be_in(self, raw: bytes, markup: bool = False) -> bool:
        """False only where the target is not in the text of these UTF-8 bytes; with `markup`, before it is reduced."""
        filters = self._filters[markup]
        if filters is None:
            return True
        if any(wanted.search(raw) for wanted in filters):
            return True
        whole = undivided(raw)
        if len(whole) < len(raw) and any(wanted.search(whole) for wanted in filters):
            return True
        if raw.isascii():
            return False
        if self.form == "NFKC":
            return True
        folded = self._bytes_folding.fold(whole)
        return folded is not None and any(wanted.search(folded) for wanted in filters)

    def may_hold(self, document: Document, raw: bytes) -> bool:
        """The same of (some of) a document's bytes. Of a page with markup, few are worth the parse that tells."""
        if not self.may_be_in(raw, document.reduce is not None):
            return False
        return document.skim is None or self.may_be_in(raw) or self.may_be_in(document.skim(raw))

    def _literal(self, text: str) -> str:
        """The longest ASCII text in every match of a spelling; empty where there is none."""
        runs = required_literals(text) if self.is_pattern else re.findall(r"[\x01-\x7f]+", text)
        return longest([piece for run in runs for piece in VARIED.split(run)])


def prefilters(literals: Sequence[str]) -> dict[bool, list[Any] | None]:
    """Patterns on folded bytes, without markup and with: one of them is in every text with the target.

    None: nothing tells. Each is a literal, which is what makes it fast; two of them in one pattern are ten times
    slower.
    """
    if not all(literals):
        return {False: None, True: None}
    words = [longest(re.findall(r"[A-Za-z0-9]+", literal)) for literal in literals]
    inside = [pattern for word in words for pattern in _in_markup(word)] if all(words) else None
    return {False: [any_case(literal) for literal in literals], True: inside}


def any_case(literal: str) -> Any:
    """A pattern that finds an ASCII literal in bytes."""
    return regex.compile(regex.escape(literal).encode(), regex.IGNORECASE)


def _in_markup(word: str) -> list[Any]:
    """Markup that cuts a word in two leaves one half of it whole. A letter may be written by its number, too.

    A word that is cut twice, with neither half whole, is not looked for.
    """
    half = (len(word) + 1) // 2
    codes = {ord(form) for letter in word for form in (letter.lower(), letter.upper())}
    numbers = "|".join(f"{code}|x0*{code:x}" for code in sorted(codes))
    written = regex.compile(f"&(?:amp;)?#0*(?:{numbers});".encode(), regex.IGNORECASE)
    return [any_case(word[:half]), any_case(word[-half:]), written]


def spread(text: str) -> str:
    """A pattern for a text whose blanks may be any white space and whose hyphens may end a line."""
    hyphen = r"-(?:[^\S\r\n]*[\r\n]\s*)?"
    words = (hyphen.join(map(regex.escape, word.split("-"))) for word in re.split(r"\s+", text.strip()))
    return r"\s+".join(words) if text.strip() else regex.escape(text)


def before_word(text: str) -> str:
    """What must be true in front of a text that is found as a whole word: no letter, or particles alone."""
    prefixes = f"(?:{PREFIXES})" if regex.search(WITH_PREFIXES, text) else ""
    return f"(?<={BEFORE}{prefixes})" if prefixes else BEFORE


def bounded(pattern: str) -> str:
    """The pattern where it does not begin or end amid a word."""
    return rf"(?:(?!{SPACED})|{before_word(pattern)})(?:{pattern})(?:(?<!{SPACED})|{AFTER})"


def longest(pieces: Sequence[str]) -> str:
    """The longest of some texts, empty where there are none."""
    return max(pieces, key=len, default="")


def required_literals(pattern: str) -> list[str]:
    """The ASCII texts that are in every match, as far as the outline of the pattern tells."""
    # Approximate matching and POSIX classes mean something else to the standard library, which parses here.
    if "[[:" in pattern or regex.search(r"\{(?!(?:\d+(?:,\d*)?|,\d+)\})", pattern):
        return []
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError):
        return []
    runs: list[str] = [""]
    _collect(parsed, runs)
    return [run for run in runs if run]


def _collect(parsed: Any, runs: list[str]) -> None:
    """Adds the literal runs of a parsed pattern that no match can do without."""
    for kind, value in parsed:
        name = str(kind)
        if name == "LITERAL" and 0 < value < 128:
            runs[-1] += chr(value)
            continue
        if name == "SUBPATTERN":
            runs.append("")
            _collect(value[-1], runs)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and value[0] > 0:
            runs.append("")
            _collect(value[2], runs)
        runs.append("")
