"""Texts and patterns made to take all time or memory: a sentence within two seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import regex

from unlearn_core.corpus.documents import documents
from unlearn_core.corpus.reading.document import ReadReport
from unlearn_core.corpus.target import SECONDS_A_TEXT, SECONDS_TO_JUDGE, Target
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

MOST_SECONDS = 2.0
WIDE = 200_000


def refusal(path: Path, content: str | bytes) -> str:
    """What is said of a file instead of reading it, in little time."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        list(documents([str(path)], DataSettings(), ReadReport()))
    assert time.process_time() - began < MOST_SECONDS
    assert len(str(caught.value)) < 2_000 and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table_of_very_many_columns_is_refused_however_it_is_written(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(WIDE)]
    for ending, between in (("csv", ","), ("tsv", "\t"), ("csv", ";")):
        rows = "\n".join([between.join(names), *[between.join(["1"] * WIDE)] * 5])
        assert "200,000 columns" in refusal(tmp_path / f"wide.{ending}", rows)
    assert "200,000 columns" in refusal(tmp_path / "bare.csv", "\n".join([",".join(["1"] * WIDE)] * 5))
    row = dict.fromkeys(names, "some text of a few words")
    for ending, content in (("jsonl", json.dumps(row) + "\n"), ("json", json.dumps([row])), ("json", json.dumps(row))):
        assert "200,000 columns" in refusal(tmp_path / f"wide-{len(content)}.{ending}", content)


def test_a_parquet_table_of_very_many_columns_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({f"c{number}": ["x"] for number in range(10_001)}), tmp_path / "wide.parquet")
    assert "10,001 columns" in refusal(tmp_path / "wide.parquet", (tmp_path / "wide.parquet").read_bytes())


def test_the_fields_that_there_are_are_named_in_a_sentence_of_bearable_length(tmp_path: Path) -> None:
    names = ",".join(f"c{number}" for number in range(5_000))
    assert "and 4,950 more" in refusal(tmp_path / "a.csv", f"{names}\n" + ",".join("12" for _ in range(5_000)))


# ---------------------------------------------------------------------------------------------- a pattern as target

ENDLESS = {
    "(?:a|b|ab)*c": "ab" * 40 + "d c",
    r"(?:\w|\w\w)*;x": "a" * 60 + " ;x",
    r"(?:..|.|...)+[!]z": "a" * 80 + "\n!z",
}


def pattern(text: str) -> Target:
    return Target(DataSettings(target=text, match="regex", whole_word=False))


@pytest.mark.parametrize("source", ENDLESS)
def test_a_pattern_that_would_not_end_is_refused_in_two_seconds_wherever_it_gets_stuck(source: str) -> None:
    prose = "A word, and one more. " * 20_000  # longer than what is judged at once
    for text in (ENDLESS[source], f"{ENDLESS[source]}\n{prose}"):
        target, began = pattern(source), time.process_time()
        with pytest.raises(ConfigError, match=r"data\.target.*takes too long"):
            target.find(text)
        assert time.process_time() - began < MOST_SECONDS


def test_the_two_limits_together_are_less_than_two_seconds() -> None:
    assert SECONDS_A_TEXT + SECONDS_TO_JUDGE < MOST_SECONDS


def test_a_long_text_is_searched_word_by_word_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [
        r"o\w*",
        r"word,? and",
        r"\bone more\. C",
        r"(?i)a word",
        r"[^\w\s] ",
        r"(\w)\1",
        r"\n",
        r", and|word",
        "é+",
    ]
    text = "A word, and one more. Café, all off\n" * 40
    whole = {source: pattern(source).find(text) for source in sources}
    assert all(whole.values())
    compiled = regex.compile

    class Slow:
        """A pattern whose search of a whole text always takes too long."""

        def __init__(self, *given: Any) -> None:
            self.pattern = compiled(*given)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.pattern, name)

        def finditer(self, *given: Any, **more: Any) -> None:
            raise TimeoutError

    monkeypatch.setattr("unlearn_core.corpus.target.SLOWEST", 0)
    monkeypatch.setattr(regex, "compile", Slow)
    assert {source: pattern(source).find(text) for source in sources} == whole
