"""What is printed steers no terminal: JSON for programs, text for people, the log file."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terminal.text import answer, as_ascii_where_hidden, coloured, printable
from unlearn_core.running.log import LogFile

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x7f\x08\r"
DIRECTIONS = "\u202e\u2066\u200f\u061c\u2028\u200b\ufeff\ud800"


def hidden(text: str) -> list[str]:
    return [sign for sign in text if not sign.isprintable() and sign != "\n"]


@pytest.mark.parametrize("text", [ESCAPES, DIRECTIONS, "é\u00a0日本🎩\U000e0041"])
def test_json_writes_what_cannot_be_seen_as_codes_and_is_read_the_same(text: str) -> None:
    facts = {text: [text, 1.5, None], "plain": "naïve “quoted” 日本 🎩"}
    written = as_ascii_where_hidden(facts)
    assert json.loads(written) == facts and not hidden(written) and "naïve “quoted” 日本 🎩" in written


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_read_the_same_and_has_nothing_hidden(facts: Any) -> None:
    written = as_ascii_where_hidden(facts)
    assert json.loads(written) == facts and not hidden(written)


def test_of_control_sequences_only_our_own_colours_reach_a_person(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = printable(f"{coloured('good', 'red')} {ESCAPES}{DIRECTIONS}\nnext")
    assert shown.startswith("\x1b[31mgood\x1b[0m ") and shown.endswith("\nnext")
    assert not hidden(shown.replace("\x1b[31m", "").replace("\x1b[0m", ""))
    answer(False, {}, f"a{ESCAPES}")
    answer(True, {"a": ESCAPES}, "")
    assert not hidden(capsys.readouterr().out)


def test_a_name_in_the_log_file_steers_no_terminal(tmp_path: Any) -> None:
    log = LogFile(tmp_path)
    try:
        raise ValueError(ESCAPES + DIRECTIONS)
    except ValueError:
        # To this handler alone: the tests' own takes no half of a surrogate pair.
        given = ("lethe", logging.ERROR, __file__, 1, "failed: %s", (ESCAPES,), sys.exc_info())
        log.handle(logging.LogRecord(*given))
    finally:
        log.close()
    text = (tmp_path / "lethe.log").read_text(encoding="utf-8")
    assert "Traceback" in text and "title" in text and not hidden(text)
