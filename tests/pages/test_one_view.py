"""Runs that were looked at are kept once for all sessions, the last few of them, and as long as their store."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from bench import big_store
from bench.big_store import Size
from pages.run import view
from storage import RunStore
from tests.pages.test_pages import opened

SIZE = Size(runs=view.MOST_VIEWS + 3, steps=20, sample_every=10)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = big_store.make(tmp_path / "home", SIZE)
    yield made
    made.close()


def loaded(store: RunStore, number: int) -> view.View:
    """A run of the store as pages have it."""
    found = view.load(store, f"{number:08x}")
    assert found is not None
    return found


def test_the_last_few_views_live_and_only_as_long_as_their_store(tmp_path: Path) -> None:
    store = big_store.make(tmp_path / "home", SIZE)
    views = [weakref.ref(loaded(store, number)) for number in range(SIZE.runs)]
    gc.collect()
    assert [each() is not None for each in views] == [False] * 3 + [True] * view.MOST_VIEWS
    loaded(store, 3)
    loaded(store, 0)
    gc.collect()
    assert views[3]() is not None and views[4]() is None, "the one that was looked at last stays"
    store.close()
    del store
    gc.collect()
    assert not [each for each in views if each() is not None]


@pytest.mark.parametrize("page", ["watch", "compare", "runs"])
def test_no_session_holds_a_run(store: RunStore, page: str) -> None:
    """Streamlit keeps the session of a closed page for two minutes; what it held of a run was 10 MB at 10,000 steps."""
    session = opened(page, store, run="00000001")
    assert not session.exception
    held = weakref.ref(loaded(store, 1))
    for number in range(2, 2 + view.MOST_VIEWS):
        loaded(store, number)  # the process needs its place for others
    gc.collect()
    assert held() is None and session.session_state["store"] is store


def test_a_view_that_was_given_out_does_not_change_when_the_run_goes_on(store: RunStore) -> None:
    before = loaded(store, 1)
    steps, sentence = list(before.numbers["forget_loss"][0]), before.facts(SIZE.steps)
    prompt = store.prompts(before.id)[0]["id"]
    answers = [{"prompt_id": prompt, "text": "another answer"}]
    store.append_step(before.id, SIZE.steps + 1, points={"forget_loss": 9.0, "tokens": 7.0}, responses=answers)
    after = loaded(store, 1)
    assert list(before.numbers["forget_loss"][0]) == steps and before.facts(SIZE.steps) == sentence
    assert after.numbers["forget_loss"][0][-1] == SIZE.steps + 1 and after.value("forget_loss", 10**6) == 9.0
    assert after.value("tokens", SIZE.steps + 1) == 7.0 == after.recent("tokens", 1)[-1]
    assert after.first("masked_share") == (0, 0.0) and "masked_share" in after.recorded
    assert (after.answer(prompt, SIZE.steps + 1) or {})["text"] == "another answer"
    store.truncate_after(before.id, 5)
    store.add_event(before.id, "resumed", {"from_step": 5}, step=5)
    assert list(loaded(store, 1).numbers["forget_loss"][0]) == list(range(6))
