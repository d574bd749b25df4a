"""A tokenizer as its tokenizer.json says, and whether one that was loaded cuts texts as the file does."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Each tells apart what pre-tokenizers and normalizers do with digits, blanks, line ends, capitals, signs and scripts.
PROBES = (
    "The cat\n  sat on 3 mats, didn't it?", "naïve façade", "猫は座る", "🎩 a", "\ttab  two  blanks",
    "1 12 123 1234 12345 123456 1234567", "In 1984, 3.14159 and 1,234,567.89 are -42 or 0x7F; room 101b.",
    "२०२४ ٢٠٢٤ ５６", " ", "  ", "   a    b     c", " leading and trailing ", "a\u00a0b\u2009c\u3000d",
    "one\ntwo\n\nthree\n\n\nfour\r\nfive\r\n\r\n  six\t\n seven", "x = 1\n    if y:\n\treturn z  \n",
    "UPPER lower Mixed iPhone McDonald ÉCOLE ŒUVRE STRASSE Straße İstanbul",
    "I'll they're I'm we've he'd it's DON'T ’tis it’s", "cafe\u0301 caf\u00e9 A\u030a \u212b \u1100\u1161 \uac00",
    "\ufb01sh \uff21\uff11 \u2460 \u00bd x\u00b2 \u2122 \u2026", "해리는 마법사다. 해리가", "東京へ行く。我爱北京",
    "สวัสดีครับ", "नमस्ते क्षेत्र", "مرحبا بالعالم", "שלום עולם", "Привет, мир!", "Γειά σου",
    "soft\u00adhyphen zero\u200bwidth join\u200der \ufeff", "“quoted” ‘single’ – dash — em… don`t", "👨‍👩‍👧 🇩🇪 👍🏽 ❤️",
    "a_b-c/d\\e @f #g $5 %6 ^7 &8 *9 (0) [1] {2} |4| ~5 !!! ??? ...", "https://www.example.com/a?b=1&c=2",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
)  # fmt: skip
MOST_GROWTH = 1_000  # characters that a normalizer or a decoder may make of one
PARTS = ("normalizer", "pre_tokenizer", "decoder")  # of a tokenizer.json, in which a pattern can be
PATIENCE = 30.0  # seconds, where a process's computing cannot be limited
# Patterns on what they are written with, many times over: a repetition inside a repetition doubles its time with each.
# A dot a pattern that is begun with.
SEARCHES = r"""
import json, re, sys
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

patterns = json.load(sys.stdin)
try:
    from resource import RLIMIT_CPU, RUSAGE_SELF, getrusage, setrlimit
    setrlimit(RLIMIT_CPU, (int(getrusage(RUSAGE_SELF).ru_utime) + 2, -1))
except ImportError:
    pass
for pattern in patterns:
    print(".", end="", flush=True)
    split = Split(Regex(pattern), "isolated")
    for piece in sorted({*pattern, *"a1 \n.", *re.findall(r"[^\W_]{2,9}", pattern)})[:100]:
        for end in ("", "!", "\0"):
            split.pre_tokenize_str(piece * 40 + end)
"""
PIECES = 500  # of the vocabulary, evenly spread, that are tried as texts


def growth(folder: Path) -> float:
    """How many characters the replacements in a tokenizer.json make of one, all of them after one another.

    Raises ValueError where the file is no JSON, RecursionError where it is nested too deeply.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return max((_growth(content.get(part)) for part in PARTS), default=1.0)


def _growth(step: Any) -> float:
    if not isinstance(step, dict):
        return 1.0
    inner = [each for value in step.values() if isinstance(value, list) for each in value]
    factor = math.prod(_growth(each) for each in inner)
    if step.get("type") == "Replace":
        pattern = step.get("pattern")
        found = str(pattern.get("String") or " ") if isinstance(pattern, dict) else " "
        factor *= max(1.0, len(str(step.get("content", ""))) / len(found))
    return factor


def endless_pattern(folder: Path) -> str:
    """A pattern in a tokenizer.json that does not come to an end on a short text; "" where there is none.

    The engine of tokenizers gives up after ten million steps, which would end the thread that it is in. Raises as
    `growth` does.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return _endless(tuple(dict.fromkeys(_patterns([content.get(part) for part in PARTS]))))


def _patterns(value: Any) -> Iterator[str]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _patterns(inner)
    if isinstance(value, dict) and isinstance(value.get("Regex"), str):
        yield value["Regex"]


@cache
def _endless(patterns: tuple[str, ...]) -> str:
    """The first of them that does not end, as a process finds that is stopped then: a thread could not be."""
    if not patterns:
        return ""
    command = [sys.executable, "-c", SEARCHES]
    try:
        done = subprocess.run(command, input=json.dumps(patterns).encode(), capture_output=True, timeout=PATIENCE)
        ended, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired as error:
        ended, output = False, error.stdout or b""
    return "" if ended else patterns[len(output) - 1] if output else ""


class WrittenTokenizer:
    """The tokenizer of a folder's tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        self._own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._own.no_truncation()
        self._own.no_padding()
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        # These two say what stands around a text whatever the file says.
        self._marks = not {"add_bos_token", "add_eos_token"} & settings.keys()
        self._added = {token.content for token in self._own.get_added_tokens_decoder().values()}
        vocabulary = sorted(self._own.get_vocab(with_added_tokens=True).values())
        pieces = [self._own.decode([piece]) for piece in vocabulary[:: max(1, len(vocabulary) // PIECES)]]
        self._texts = list(dict.fromkeys((*PROBES, *sorted(self._added)[:PIECES], *pieces, " ".join(pieces[:100]))))

    def differs(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The first text that a loaded tokenizer cuts, or reads back, in another way; "" if none.

        Tokens that only tokenizer_config.json adds are no difference.
        """
        further = set(tokenizer.get_added_vocab()) - self._added
        texts = [text for text in self._texts if text and not any(token in text for token in further)]
        self._own.encode_special_tokens = tokenizer.split_special_tokens
        for special in {False, self._marks}:
            own = self._own.encode_batch(texts, add_special_tokens=special)
            loaded = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
            for text, ours, theirs in zip(texts, own, loaded, strict=True):
                if ours.ids != list(theirs) or (text in PROBES and self._read(ours.ids) != _read(tokenizer, theirs)):
                    return text
        return ""

    def _read(self, ids: list[int]) -> str:
        return str(self._own.decode(ids, skip_special_tokens=False))


def _read(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
