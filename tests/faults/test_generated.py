"""Generated run files, texts, commands and addresses, in short: nothing but one sentence, and at once."""

from __future__ import annotations

from pathlib import Path

from tests.faults import generated
from unlearn_core.running import drive
from unlearn_core.settings.sections import ROLES

FEW, FEW_PAGES = 50, 8


def test_any_run_file_is_one_that_stays_the_same_or_one_sentence(tmp_path: Path) -> None:
    count = generated.examples(
        generated.run_files(), lambda value: generated.check_run_file(value, tmp_path), start=0, count=FEW
    )
    assert count >= FEW


def test_any_bytes_under_any_ending_are_texts_or_one_sentence(tmp_path: Path) -> None:
    count = generated.examples(
        generated.files(), lambda value: generated.check_reader(value, tmp_path), start=0, count=FEW
    )
    assert count >= FEW


def test_any_command_is_done_or_refused_in_one_sentence(tmp_path: Path) -> None:
    with generated.desk(tmp_path) as desk:
        assert generated.examples(generated.commands(), desk.check, start=0, count=FEW) >= FEW


def test_any_values_in_an_address_are_a_page(tmp_path: Path) -> None:
    with generated.browser(tmp_path) as browser:
        generated.examples(generated.addresses(browser.run_id), browser.check, start=0, count=FEW_PAGES)
        assert browser.values >= FEW_PAGES


def test_a_command_whose_values_are_of_another_kind_says_which(tmp_path: Path) -> None:
    wrong = (
        ("live", "prompt", {"text": 5}, "“text” is 5, where a text belongs"),
        ("live", "prompt", {"text": "What?", "role": "king"}, "not 'king'"),
        ("live", "prompt", {"text": "What?", "slot": 2**70}, "where a whole number belongs"),
        ("live", "prompt", {"text": "What?", "slot": 7}, "no question in slot 7"),
        ("live", "probe", {"text": "What?"}, "names no “steps”"),
        ("done", "probe", {"text": "What?", "steps": [True]}, "“steps” has True"),
        ("none", "ask", {"prompts": ["What?", None]}, "“prompts” has None"),
        ("none", "windows", {"config": [1]}, "where a table belongs"),
    )
    with generated.desk(tmp_path) as desk:
        for of, kind, payload, sentence in wrong:
            row = desk.asked(of, kind, payload)
            assert row["code"] in ("invalid", "no_prompt") and sentence in row["error"], row
        roles = {row["role"] for row in desk.store.prompts(desk.runs["live"])}
    assert roles <= set(ROLES) == set(drive.ROLES), "Compare draws these, and no others"
