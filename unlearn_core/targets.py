"""What shall be forgotten, as something that finds itself in a text: a word, several spellings, or a pattern."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, cast

import regex

from unlearn_core.config import ConfigError, DataSettings

# A letter or digit, except of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which write words without blanks.
SPACED = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
# Letters beyond ASCII that count as an ASCII letter where case does not matter (ı İ ſ K), and those that NFC turns
# into ASCII: where one of them stands in a text, its bytes tell nothing about the target.
DISGUISED = {
    "i": (b"\xc4\xb0", b"\xc4\xb1", b"\xcc\x87"),  # the last is a dot: NFC joins it with I to İ
    "s": (b"\xc5\xbf",),
    "k": (b"\xe2\x84\xaa",),
    ";": (b"\xcd\xbe",),
    "`": (b"\xe1\xbf\xaf",),
}
MARKUP = "[<>{}\\[\\]|&;'_-]"  # what may stand inside a word of a text with markup
LABEL = r"\[[^\s\]]+ "  # what may stand there, too: the address of a link
WHOLE = 12  # letters of a word that are enough to be rare
SECONDS_A_TEXT = 5.0  # the longest that a pattern may think about one text
SECONDS_TO_JUDGE, SLOWEST = 10.0, 200_000  # after so many seconds it must have read so many characters in each


class Target:
    """A compiled target. Raises ConfigError for a pattern that cannot be, or that matches nothing at all."""

    def __init__(self, data: DataSettings) -> None:
        self.name = data.target
        self.is_pattern = data.match == "regex"
        self.form = "" if data.normalization == "none" else data.normalization
        self.ignore_case = data.ignore_case
        self.whole_word = data.whole_word
        given = [self.normal(text) for text in (data.target, *data.spellings) if text]
        self.spellings: Sequence[str] = sorted(dict.fromkeys(given), key=len, reverse=True)
        flags = regex.MULTILINE | (regex.IGNORECASE if data.ignore_case else 0)
        self._compiled = self._compile("|".join(self._branches()), flags)
        self._filters = self._prefilters()
        self._spent, self._read = 0.0, 0

    # ---------------------------------------------------------------------------------------------- compiling

    def _branches(self) -> Iterator[str]:
        for text in self.spellings:
            if self.is_pattern:
                self._compile(text, 0)  # each on its own: "a)(b" is not a pattern although "(?:a)(b)" is
                yield bounded(text) if self.whole_word else f"(?:{text})"
            elif self.whole_word:
                before = f"(?<!{SPACED})" if regex.match(SPACED, text) else ""
                after = f"(?!{SPACED})" if regex.search(rf"{SPACED}\Z", text) else ""
                yield f"{before}{regex.escape(text)}{after}"
            else:
                yield regex.escape(text)

    def _compile(self, source: str, flags: int) -> Any:
        try:
            compiled = regex.compile(source, flags)
        except RecursionError:
            raise ConfigError(f"data.target is {_short(source)}; this pattern is nested too deeply.") from None
        except regex.error as error:
            where = "" if error.pos is None else f" at position {error.pos}"
            raise ConfigError(
                f"data.target is {_short(source)}; this is not a regular expression: {error.msg}{where}."
            ) from None
        if self.is_pattern and compiled.match(""):
            raise ConfigError(f"data.target is {_short(source)}; this pattern matches nothing at all, so everywhere.")
        return compiled

    # ------------------------------------------------------------------------------------------------ finding

    def normal(self, text: str) -> str:
        """The text in the form that counts: offsets are offsets in it."""
        if not self.form or text.isascii():
            return text
        return unicodedata.normalize(cast(Any, self.form), text)

    def find(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of every occurrence, in order, none in another. `text` is in `normal` form."""
        if not self.is_pattern:
            return [hit.span() for hit in self._compiled.finditer(text)]
        began = time.perf_counter()
        try:
            spans = [hit.span() for hit in self._compiled.finditer(text, timeout=SECONDS_A_TEXT)]
        except TimeoutError:
            raise self._too_slow() from None
        self._spent += time.perf_counter() - began
        self._read += len(text)
        if self._spent > SECONDS_TO_JUDGE and self._read < SLOWEST * self._spent:
            raise self._too_slow()
        return [(start, end) for start, end in spans if end > start]

    def replaced(self, text: str, stand_in: str) -> str:
        """The text with `stand_in` wherever the target stood."""
        parts, end = [], 0
        for start, stop in self.find(text):
            parts += [text[end:start], stand_in]
            end = stop
        return "".join([*parts, text[end:]])

    def _too_slow(self) -> ConfigError:
        return ConfigError(
            f"data.target is {_short(self.name)}; this pattern takes too long on your text, since it tries the same "
            "letters in ever new ways. Write it without a repetition inside a repetition."
        )

    # -------------------------------------------------------------------------------------------- the prefilter

    def may_be_in(self, raw: bytes, markup: bool = False) -> bool:
        """False only where the target is not in the text of these UTF-8 bytes; with `markup`, before it is reduced."""
        filters = self._filters[markup]
        if filters is None:
            return True
        if not raw.isascii():
            if self.form == "NFKC":
                return True
            for disguise in self._disguises:
                if disguise in raw:
                    return True
        return any(all(part.search(raw) for part in wanted) for wanted in filters)

    def _prefilters(self) -> dict[bool, list[tuple[Any, ...]] | None]:
        """Patterns on bytes, without markup and with: of every text with the target, all of a tuple find something.

        None: nothing tells.
        """
        pieces: list[str] = []
        inside: list[tuple[Any, ...]] = []
        for text in self.spellings:
            literal = required_literal(text) if self.is_pattern else longest(re.findall(r"[\x01-\x7f]+", text))
            if not literal:
                return {False: None, True: None}
            pieces.append(literal)
            word = longest(re.findall(r"[A-Za-z0-9]+", literal))
            inside.append(self._in_markup(text, word) if word else ())
        self._disguises = sorted({b for piece in pieces for sign in piece.lower() for b in DISGUISED.get(sign, ())})
        plain = [(regex.compile(regex.escape(piece.encode()), self._byte_flags()),) for piece in pieces]
        return {False: plain, True: inside if all(inside) else None}

    def _byte_flags(self) -> int:
        return regex.IGNORECASE if self.ignore_case or self.is_pattern else 0

    def _in_markup(self, text: str, word: str) -> tuple[Any, ...]:
        """The word, or a beginning of it that markup follows and an end of it that markup comes before.

        What may go on behind the markup is not looked into. A letter may be written by its number, too.
        """
        place = text.find(word)
        begins = ends = False  # of a pattern's literal, nobody knows what it stands beside
        if not self.is_pattern:
            after = text[place + len(word) :]
            begins = text[place - 1].isascii() if place else self.whole_word
            ends = after[0].isascii() if after else self.whole_word
        first, last = word[:WHOLE], word[-WHOLE:]
        starts = stops = ""
        for letter in reversed(first[1:]):
            starts = f"(?:{letter}{starts})?"
        for letter in last[:-1]:
            stops = f"(?:{stops}{letter})?"
        head = (r"(?<![A-Za-z0-9\x80-\xff])" if begins else "") + first[0] + starts + MARKUP
        tail = f"(?:{MARKUP}|{LABEL})" + stops + last[-1] + (r"(?![A-Za-z0-9\x80-\xff])" if ends else "")
        codes = {ord(form) for letter in word for form in (letter.lower(), letter.upper())}
        numbers = "|".join(f"{code}|x0*{code:x}" for code in sorted(codes))
        written = f"(?i:&(?:amp;)?#0*(?:{numbers});)"
        return tuple(
            regex.compile(f"{known}|{part}|{written}".encode(), self._byte_flags())
            for known, part in ((first, head), (last, tail))
        )


def bounded(pattern: str) -> str:
    """The pattern where it does not begin or end amid a word."""
    return rf"(?:(?!{SPACED})|(?<!{SPACED}))(?:{pattern})(?:(?<!{SPACED})|(?!{SPACED}))"


def longest(pieces: Sequence[str]) -> str:
    """The longest of some texts, empty where there are none."""
    return max(pieces, key=len, default="")


def required_literal(pattern: str) -> str:
    """The longest ASCII text that is in every match, as far as the outline of the pattern tells; else ""."""
    # Approximate matching and POSIX classes mean something else to the standard library, which parses here.
    if "[[:" in pattern or regex.search(r"\{(?!(?:\d+(?:,\d*)?|,\d+)\})", pattern):
        return ""
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError):
        return ""
    runs: list[str] = [""]
    _collect(parsed, runs)
    return longest(runs)


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


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:57] + "...")
