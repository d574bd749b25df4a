"""The target as a matcher: finds a word, its spellings or a pattern in a text."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import regex

from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

if TYPE_CHECKING:
    from unlearn_core.corpus.reading.document import Document

# A letter or digit, except of Thai, Lao, Burmese, Khmer, Japanese and Chinese, which write words without blanks.
SPACED = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
# Letters beyond ASCII that count as an ASCII letter where case does not matter, and those that NFC turns into ASCII.
DISGUISED = {"i": "İı", "s": "ſ", "k": "\u212a", ";": "\u037e", "`": "\u1fef"}
DOT = "\u0307"  # behind i: NFC joins the two to İ
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
        texts = [self.normal(text) for text in (data.target, *data.spellings) if text]
        self.spellings: Sequence[str] = sorted(dict.fromkeys(texts), key=len, reverse=True)
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
        if self.form == "NFKC" and not raw.isascii():
            return True
        return any(wanted.search(raw) for wanted in filters)

    def may_hold(self, document: Document, raw: bytes) -> bool:
        """The same of (some of) a document's bytes. Of a page with markup, few are worth the parse that tells."""
        if not self.may_be_in(raw, document.reduce is not None):
            return False
        return document.skim is None or self.may_be_in(raw) or self.may_be_in(document.skim(raw))

    def _prefilters(self) -> dict[bool, list[Any] | None]:
        """Patterns on bytes, without markup and with: one of them finds something in every text with the target.

        None: nothing tells. Each is a literal but for its disguised letters, which is what makes it fast; two of them
        in one pattern are ten times slower.
        """
        plain: list[Any] = []
        inside: list[Any] = []
        complete = True
        for text in self.spellings:
            literal = required_literal(text) if self.is_pattern else longest(re.findall(r"[\x01-\x7f]+", text))
            if not literal:
                return {False: None, True: None}
            plain.append(self._in_bytes(literal))
            word = longest(re.findall(r"[A-Za-z0-9]+", literal))
            complete = complete and bool(word)
            if word:
                inside += self._in_markup(word)
        return {False: plain, True: inside if complete else None}

    def _in_bytes(self, literal: str) -> Any:
        def letter(sign: str) -> str:
            forms = [regex.escape(sign), *DISGUISED.get(sign.lower(), "")]
            dotted = f"(?:{DOT})?" if sign.lower() == "i" else ""
            return f"(?:{'|'.join(forms)}){dotted}" if len(forms) > 1 else forms[0]

        return regex.compile("".join(map(letter, literal)).encode(), regex.IGNORECASE)

    def _in_markup(self, word: str) -> list[Any]:
        """Markup that cuts a word in two leaves one half of it whole. A letter may be written by its number, too.

        A word that is cut twice, with neither half whole, is not looked for.
        """
        half = (len(word) + 1) // 2
        codes = {ord(form) for letter in word for form in (letter.lower(), letter.upper())}
        numbers = "|".join(f"{code}|x0*{code:x}" for code in sorted(codes))
        written = regex.compile(f"&(?:amp;)?#0*(?:{numbers});".encode(), regex.IGNORECASE)
        return [self._in_bytes(word[:half]), self._in_bytes(word[-half:]), written]


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
