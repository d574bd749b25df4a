"""A reload of the page keeps the draft: a session that knows nothing finds it by the id in the address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.setup import drafts
from pages.setup.draft import UNTOUCHED, to_json
from storage import RunStore
from tests.pages.test_pages import button, opened, shown
from unlearn_core.world import TARGET

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LETHE_ROOTS", str(tmp_path))
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


def reloaded(at: AppTest, page: str, store: RunStore) -> AppTest:
    """The page at the same address, in a session of its own."""
    address = {key: str(value) for key, value in at.query_params.items()}
    return opened(page, store, **address)


def test_everything_typed_is_there_after_a_reload(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Lily ran.")
    at = opened("watch", store, new="1")
    at.text_input(key="card_word").set_value("Lily <b>").run()
    at.text_input(key="card_near").set_value("And Tom?").run()
    button(at, "more_questions").click().run()
    at.text_input(key="card_free_0").set_value("Why?").run()
    at.checkbox(key="card_whole_word").uncheck().run()
    at.selectbox(key="card_method").set_value("npo").run()
    at.number_input(key="card_set schedule.steps").set_value(7).run()
    at = reloaded(at, "watch", store)
    assert at.text_input(key="card_word").value == "Lily <b>" and at.text_input(key="card_near").value == "And Tom?"
    assert at.text_input(key="card_free_0").value == "Why?" and "Lily" in at.text_input(key="card_forget_0").value
    assert at.checkbox(key="card_whole_word").value is False
    assert at.selectbox(key="card_method").value == "npo" and at.number_input(key="card_set schedule.steps").value == 7
    assert "steps 7 instead of" in shown(at)
    at = reloaded(at, "data", store)
    assert "Lily &lt;b&gt;" in shown(at) and not at.exception


def test_an_untouched_form_leaves_no_file_and_no_id(store: RunStore) -> None:
    at = opened("watch", store)
    assert "draft" not in at.query_params and not (store.home / drafts.FOLDER).exists()


def test_what_is_taken_back_is_untouched_after_a_reload_too(store: RunStore) -> None:
    at = opened("watch", store)
    at.text_input(key="card_word").set_value("Paris").run()
    at.number_input(key="card_set schedule.steps").set_value(7).run()
    button(at, "reset_ways").click().run()
    at = reloaded(at, "watch", store)
    assert at.text_input(key="card_word").value == "Paris"
    assert "All as the recipe has it." in shown(at)


@pytest.mark.parametrize(
    "stored",
    [
        "{",
        json.dumps({"target": 7}),
        json.dumps({**json.loads(to_json(UNTOUCHED)), "method": "gone"}),
        json.dumps({**json.loads(to_json(UNTOUCHED)), "overrides": {"optimizer.momentum": 50.0}}),
        json.dumps({**json.loads(to_json(UNTOUCHED)), "overrides": {"schedule.steps": 1e300}}),
        "x" * (drafts.MOST_BYTES + 1),
    ],
)
def test_a_stored_draft_that_is_none_is_an_untouched_form(store: RunStore, stored: str) -> None:
    (store.home / drafts.FOLDER).mkdir()
    (store.home / drafts.FOLDER / "abc.json").write_text(stored)
    at = opened("watch", store, new="1", draft="abc")
    assert at.text_input(key="card_word").value == TARGET and "All as the recipe has it." in shown(at)


@pytest.mark.parametrize("draft_id", ["../lethe", "A B", "x" * 400, "", "<img>"])
def test_an_id_that_is_none_is_replaced(store: RunStore, draft_id: str) -> None:
    at = opened("watch", store, new="1", draft=draft_id)
    at.text_input(key="card_word").set_value("Paris").run()
    assert [path.name for path in (store.home / drafts.FOLDER).iterdir()] == [f"{at.query_params['draft']}.json"]
    assert reloaded(at, "watch", store).text_input(key="card_word").value == "Paris"


def test_a_stored_place_outside_is_refused_like_a_typed_one(store: RunStore) -> None:
    (store.home / drafts.FOLDER).mkdir()
    stored = {**json.loads(to_json(UNTOUCHED)), "forget_from": "/etc", "model": "/etc", "earlier": ["/etc"]}
    (store.home / drafts.FOLDER / "abc.json").write_text(json.dumps(stored))
    at = opened("watch", store, new="1", draft="abc")
    assert "is outside of the folders that the browser may read" in shown(at)
    button(at, "start_run").click().run()
    assert not store.runs() and not at.exception


def test_a_store_that_cannot_be_written_gets_no_draft(store: RunStore) -> None:
    store.read_only, store.notice = True, "It is open for reading only."
    at = opened("watch", store, new="1")
    at.text_input(key="card_word").set_value("Paris").run()
    assert at.text_input(key="card_word").value == "Paris" and not (store.home / drafts.FOLDER).exists()
