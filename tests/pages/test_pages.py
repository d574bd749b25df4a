"""Every page in every state: empty, filled, failed, hostile, read-only. A real store, no model, no browser."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import streamlit as st
from markupsafe import escape
from streamlit.testing.v1 import AppTest

from pages.run import answers, chart, headline, step_slider, view
from pages.run.view import View
from pages.setup import first_card
from pages.shared import choices, process
from pages.shared.format import duration, three
from pages.shared.recorded import RECORDED
from pages.shared.standing import standing_of
from storage import RunStore, export
from tests.quick import some_quick
from unlearn_core.settings import provenance
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import TARGET

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    ":red[x] **bold** `code`",
    "$$\\frac{1}{2}$$ [a](http://example.org)",
    "w " * 25_000,
)
BEFORE = "It is a song from the film Mary Poppins."
AFTER = 'It is a portmanteau. It joins "super" (above) and "cali" (beauty).'


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


class IdleWorker:
    """Stands where the worker stands, and does nothing."""

    started: ClassVar[list[IdleWorker]] = []

    def __init__(self, store: RunStore, opener: Any) -> None:
        self.alive = False

    def start(self) -> None:
        self.alive = True
        self.started.append(self)

    def stop(self) -> None:
        self.alive = False


class IdlePreview(IdleWorker):
    """The same for the preview thread."""

    started: ClassVar[list[IdleWorker]] = []


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The whole app with a worker and a preview thread that do nothing, on an empty store."""
    monkeypatch.setattr("unlearn_core.running.worker.Worker", IdleWorker)
    monkeypatch.setattr("unlearn_core.running.preview.PreviewThread", IdlePreview)
    monkeypatch.setenv("LETHE_HOME", str(tmp_path / "app"))
    IdleWorker.started.clear()
    yield AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    for name in ("worker", "preview"):
        process.objects.pop(name, None)
    if "store" in process.objects:
        process.objects.pop("store").close()
    process.objects.pop("home", None)


def begin(store: RunStore, name: str = "first light", steps: int = 20) -> str:
    plain = RunConfig.from_dict({"name": name, "schedule": {"steps": steps}}).to_dict()
    return store.create_run(
        name=name,
        target=TARGET,
        method="grad_ascent",
        config=plain,
        provenance={"device": "cpu"},
        seed=0,
        prompts=plain["prompts"],
        owner="elsewhere:1:test",
        lease_seconds=600,
    )


def fill(
    store: RunStore, run_id: str, steps: int, status: str = "running", now: str = AFTER, reason: str | None = None
) -> None:
    """A run of plausible numbers that forgets at step 4."""
    prompts = store.prompts(run_id)
    for step in range(steps + 1):
        said = [
            {
                "prompt_id": prompt["id"],
                "text": (BEFORE if step < 4 else now) if prompt["role"] == "forget" else "the same answer",
                "tokens": 9,
                "seconds": 0.1,
                "target_probability": 1.0 if step == 0 else 0.9**step,
            }
            for prompt in prompts
        ]
        levels = {"forget_level": 1.9, "forget_level_source": "a model without the word", "retain_budget": 0.05}

        def save(folder: Path, whole: bool = step == steps) -> None:
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text("{}")
            if whole:
                (folder / "state.json").write_text("{}")

        checkpoint = store.write_checkpoint(run_id, step, step == steps, save, "somewhere:1:x")
        store.place_checkpoint(checkpoint, "somewhere:1:x")
        store.append_step(
            run_id,
            step,
            points={
                "forget_loss": 0.1 + 0.1 * step,
                "retain_loss": 0.2 * (1 + 0.001 * step),
                "holdout_loss": 0.9 * (1 + 0.002 * step),
                "neighbour_loss": 0.3,
                "step_seconds": 0.4,
                "gradient_norm": 0.2,
                "removed_share": 0.01,
                "retain_condition_number": 3.0,
            },
            responses=said,
            events=[("baseline", levels), ("started", {})] if step == 0 else [],
            checkpoint=checkpoint,
            status=status,
            status_reason=reason,
        )


def opened(page: str, store: RunStore, **address: str) -> AppTest:
    """The page as somebody sees it who opens this address."""
    at = AppTest.from_file(str(ROOT / "pages" / f"{page}.py"), default_timeout=30)
    at.session_state["store"] = store
    at.session_state["export"] = export
    for key, value in address.items():
        at.query_params[key] = value
    at.run()
    assert not at.exception, at.exception
    return at


def shown(at: AppTest) -> str:
    """All the HTML of the page."""
    return "\n".join(element.proto.body for element in at.get("html"))


def component(at: AppTest, name: str) -> dict[str, Any]:
    """What a component of the page was given."""
    for element in at.get("bidi_component"):
        if element.proto.component_name.endswith(name):
            return json.loads(element.proto.json)
    raise AssertionError(f"no component {name}")


def table_of(at: AppTest) -> list[dict[str, list[Any]]]:
    """The rows of the table on Runs: column -> [what is shown, what it is sorted by]."""
    data = component(at, "choices")
    names = [column["name"] for column in data["columns"]]
    return [dict(zip(names, row["cells"], strict=True)) for row in data["rows"]]


def button(at: AppTest, key: str) -> Any:
    return next(found for found in at.button if found.key == key)


# ------------------------------------------------------------------------------------------------------ empty


def test_the_first_visit_offers_a_word_four_questions_a_recipe_and_start(store: RunStore) -> None:
    at = opened("watch", store)
    assert at.text_input(key="card_word").value == TARGET
    assert len([field for field in at.text_input if field.value]) == 5
    assert not button(at, "start_run").disabled
    assert [command["kind"] for command in store.commands("any")] == ["ask"]
    assert component(at, "answers")["cards"][0]["state"] == "waiting"


def test_what_the_model_says_now_is_shown_as_soon_as_it_is_answered(store: RunStore) -> None:
    at = opened("watch", store)
    (command,) = store.commands("any")
    said = [{"prompt": prompt, "text": f"about: {prompt}"} for prompt in command["payload"]["prompts"]]
    store.add_event(None, "answered", {"command": command["id"], "answers": said})
    store.finish(command["id"])
    at.run()
    first = component(at, "answers")["cards"][0]
    assert first["state"] == "baseline" and first["now"][0][1].startswith("about: ")
    assert len(store.commands("any")) == 1


@pytest.mark.slow
def test_an_empty_compare_and_an_empty_list_of_runs_invite_to_watch(app: AppTest) -> None:
    app.switch_page("pages/compare.py").run()
    assert "nothing to compare yet" in shown(app) and not app.exception
    app.switch_page("pages/runs.py").run()
    assert "No run yet" in shown(app) and not app.exception


@pytest.mark.slow
def test_no_page_imports_torch() -> None:
    code = (
        "import sys; from pages.setup import first_card; from pages.run import chart; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.slow
def test_two_sessions_and_cleared_caches_have_one_worker(app: AppTest) -> None:
    st.cache_resource.clear()
    app.run()
    AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    assert len(IdleWorker.started) == 1


def test_a_home_that_cannot_be_used_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LETHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("unlearn_core.running.worker.Worker", IdleWorker)
    at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).run()
    assert "Set LETHE_HOME to a folder that can be written" in at.error[0].value and not at.exception


# ---------------------------------------------------------------------------------------------------- starting


def test_start_makes_one_run_with_the_questions_as_they_stand(store: RunStore) -> None:
    at = opened("watch", store)
    at.text_input(key="card_forget_0").set_value("Why <b>that</b> word?").run()
    button(at, "start_run").click().run()
    (run,) = store.runs()
    assert (run["name"], run["status"], run["target"]) == ("first light", "queued", TARGET)
    assert store.prompts(run["id"])[0]["text"] == "Why <b>that</b> word?"
    assert at.query_params["run"] == run["id"]


class CutOff(dict[str, Any]):
    """A session's state that, as Streamlit's does when another click has come, ends the callback at its n-th touch."""

    left = 10_000

    def _touch(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise InterruptedError

    def __getitem__(self, key: str) -> Any:
        self._touch()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._touch()
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._touch()
        super().__delitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._touch()
        return super().get(key, default)


@pytest.mark.slow
def test_a_start_that_a_second_click_cuts_off_anywhere_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"card_ticket": "0badcafe", "card_preset": "portmanteau", "card_word": TARGET, "card_forget_0": "What?"}
    for touches in range(1, 100):
        store = RunStore(tmp_path / f"home-{touches}")
        state, address = CutOff(card), CutOff(new="1")
        state.left = touches
        monkeypatch.setattr(first_card.st, "session_state", state)
        monkeypatch.setattr(first_card.st, "query_params", address)
        with contextlib.suppress(InterruptedError):
            first_card.start_run(store)
        untouched, state.left = state.left > 0, 10_000
        first_card.start_run(store)  # the second click
        assert [run["id"] for run in store.runs()] == ["0badcafe"] == [state["run"]]
        assert address == {"run": "0badcafe"}
        store.close()
        if untouched:
            return
    pytest.fail("the callback was never gone through whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("", "The word is &#39;&#39;: it is empty"),
        ("supercalifragilisticexpialidocius", f"Did you mean {TARGET}"),
        ("🙂🙂", "never occurs"),
        ("שלום", "never occurs"),
        ("x" * 300, "300 characters"),
    ],
)
def test_a_word_that_cannot_be_is_refused_in_a_sentence(store: RunStore, word: str, said: str) -> None:
    at = opened("watch", store)
    at.text_input(key="card_word").set_value(word).run()
    button(at, "start_run").click().run()
    assert said in shown(at)
    assert not store.runs()
    assert not button(at, "start_run").disabled


def test_a_question_of_50000_characters_is_refused_and_named(store: RunStore) -> None:
    at = opened("watch", store)
    at.text_input(key="card_keep").set_value("a" * 50_000).run()
    button(at, "start_run").click().run()
    assert "Question 4 is &#39;aaa" in shown(at) and "it has 50,000 characters" in shown(at)


def test_questions_follow_the_word_unless_a_person_has_worded_them(store: RunStore) -> None:
    at = opened("watch", store)
    at.text_input(key="card_forget_1").set_value("My own question").run()
    at.text_input(key="card_word").set_value("Paris").run()
    assert "Paris" in at.text_input(key="card_forget_0").value
    assert at.text_input(key="card_forget_1").value == "My own question"


def test_a_new_run_beside_another_says_what_happens_to_that_one(store: RunStore) -> None:
    fill(store, begin(store), 5)
    assert "first light” is at step 5 and goes on; this run waits" in shown(opened("watch", store, new="1"))


# ----------------------------------------------------------------------------------------------------- running


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "collapsed"), [(0.388, False), (0.45, True)])
def test_a_forget_loss_beyond_guessing_is_a_collapse_only_where_text_to_keep_has_suffered(
    store: RunStore, kept: float, collapsed: bool
) -> None:
    run_id = begin(store)
    said = [{"prompt_id": p["id"], "text": "A word.", "tokens": 2, "seconds": 0.1} for p in store.prompts(run_id)]
    level = [("baseline", {"uniform_loss": 6.3, "forget_level": 8.0})]
    store.append_step(run_id, 0, points={"forget_loss": 0.1, "holdout_loss": 0.388}, responses=said, events=level)
    points = {"forget_loss": 9.0, "holdout_loss": kept}
    store.append_step(run_id, 1, points=points, responses=said, status="running")
    assert ("worse than guessing" in shown(opened("watch", store))) == collapsed


def test_the_sentence_the_chart_compare_runs_and_the_terminal_name_the_same_steps(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = standing_of(store, store.run(run_id) or {}).milestones
    assert at.forgotten is not None and at.best is not None
    watch = opened("watch", store)
    assert f"forgotten since step {at.forgotten} " in shown(watch)
    assert at.best == 7 and "This is the best step so far." in shown(watch), "the last one is the furthest along"
    figure = json.loads(component(watch, "live_chart")["figure"])
    stars = [trace["x"] for trace in figure["data"] if trace.get("name") == "best step"]
    assert stars == [[at.best]]
    assert f"forgotten since {at.forgotten}" in [note["text"] for note in figure["layout"]["annotations"]]
    compare = shown(opened("compare", store, a=f"{run_id}@{at.forgotten}", b=f"{run_id}@{at.best}"))
    assert "forgotten since here" in compare and "★ best step" in compare
    row = table_of(opened("runs", store))[0]
    assert (row["forgotten"][1], row["best step"][1]) == (at.forgotten, at.best)


def test_a_running_run_shows_its_sentence_its_answers_and_its_curves(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = opened("watch", store)
    assert "Step 7: forgotten since step 4 and explains the word from 2 of its 5 parts." in shown(at)
    assert "Holdout loss +1.4\u00a0% of +5\u00a0% allowed." in shown(at)
    first = component(at, "answers")["cards"][0]
    assert first["state"] == "changed"
    assert any(kind == "del" and "Mary Poppins" in text for kind, text in first["before"])
    assert any(kind == "ins" and "portmanteau" in text for kind, text in first["now"])
    figure = json.loads(component(at, "live_chart")["figure"])
    assert {trace.get("name") for trace in figure["data"]} >= {"forget", "retain", "neighbour", "holdout"}
    assert at.query_params["run"] == run_id


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a person's hand does with the step slider; each move is reported once, as its component reports it."""
    moves: list[dict[str, Any]] = []

    def reported(data: dict[str, Any], key: str, on_moved_change: Callable[[], None], **_: Any) -> None:
        if moves:
            st.session_state[key] = SimpleNamespace(moved=moves.pop())
            on_moved_change()

    monkeypatch.setattr(step_slider, "step_slider", reported)
    return moves


@pytest.mark.slow
def test_the_slider_looks_back_and_stays_put(store: RunStore, hand: list[dict[str, Any]]) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = opened("watch", store)
    assert button(at, "follow").disabled and at.query_params.get("step") is None
    hand.append({"step": 2, "nonce": 0.5})
    at.run()
    at.run()
    assert "Step 2: it still names Mary Poppins" in shown(at)
    store.append_step(run_id, 8, points={"forget_loss": 1.0})
    at.run()
    assert "Step 2: " in shown(at) and at.query_params["step"] == "2"
    assert "You look at step 2. The run is at step 8 and goes on." in shown(at), "it says so"
    button(at, "follow").click().run()
    assert "Step 8: " in shown(at) and "You look at step" not in shown(at)
    assert "step" not in at.query_params
    hand.append({"step": 2, "nonce": 0.5})  # the same move, reported again as a tick and a click cross each other
    at.run()
    button(at, "pause_or_resume").click().run()
    assert button(at, "follow").disabled and "step" not in at.query_params


def test_a_question_that_is_asked_while_an_earlier_step_is_looked_at_is_seen_at_the_newest(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    asked = [{"slot": 0, "role": "forget", "text": "In new words?"}]

    def reported(data: dict[str, Any], key: str, on_asked_change: Callable[[], None]) -> None:
        if asked:
            st.session_state[key] = SimpleNamespace(asked=asked.pop())
            on_asked_change()

    monkeypatch.setattr(answers, "answers_component", reported)
    at = opened("watch", store, run=run_id, step="3")
    at.run()
    (command,) = store.commands(run_id)
    assert command["payload"]["text"] == "In new words?"
    assert button(at, "follow").disabled and "step" not in at.query_params


@pytest.mark.parametrize("text", ["-1", "²", "1.5", "9" * 5000, "x"])
def test_a_step_in_the_address_that_is_none_is_no_choice(store: RunStore, text: str) -> None:
    run_id = begin(store)
    fill(store, run_id, 2)
    assert button(opened("watch", store, run=run_id, step=text), "follow").disabled
    assert "names no step of a run" in shown(opened("compare", store, a=f"{run_id}@0", b=f"{run_id}@{text}"))


def test_the_slider_stands_where_the_page_is(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = opened("watch", store)
    assert component(at, "step_slider") == {"step": 7, "last": 7, "total": 20, "heard": None}
    store.append_step(run_id, 8, points={"forget_loss": 1.0})
    at.run()
    assert component(at, "step_slider")["step"] == 8


def test_a_step_in_the_address_is_what_is_shown(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    assert "Step 3: it still names" in shown(opened("watch", store, run=run_id, step="3"))


def test_a_question_that_is_asked_for_is_shown_at_once_and_a_refused_one_is_not(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 6)
    at = opened("watch", store)
    before = component(at, "answers")["cards"]
    slot = before[0]["slot"]
    edited = store.request(run_id, "prompt", {"slot": slot, "role": "forget", "text": "In new words?"})
    new = store.request(run_id, "prompt", {"slot": None, "role": "retain", "text": "Who are you?"})
    at.run()
    first, *others, last = component(at, "answers")["cards"]
    assert (first["key"], first["prompt"], first["state"]) == (before[0]["key"], "In new words?", "waiting")
    assert (last["prompt"], last["role"], last["slot"], last["state"]) == ("Who are you?", "retain", None, "waiting")
    assert first["now"] == last["now"] == [["same", "asked for"]] and others == before[1:]
    store.finish(edited, "It is too long.", "invalid")
    store.finish(new, "It is too long.", "invalid")
    at.run()
    assert component(at, "answers")["cards"] == before


def test_a_wording_that_was_edited_keeps_the_answers_that_it_got(store: RunStore, hand: list[dict[str, Any]]) -> None:
    run_id = begin(store)
    fill(store, run_id, 6)
    old = store.prompts(run_id)[0]
    new = store.edit_prompt(run_id, old["slot"], "forget", "In new words?", 6)
    rows = [
        {"step": step, "prompt_id": new, "text": f"new words at {step}", "tokens": 1, "seconds": 0.1} for step in (0, 6)
    ]
    store.add_responses(run_id, rows)
    at = opened("watch", store)
    now = component(at, "answers")["cards"][0]
    assert now["prompt"] == "In new words?" and "new words at 6" in "".join(text for _, text in now["now"])
    hand.append({"step": 5, "nonce": 0.5})
    at.run()
    at.run()
    before = component(at, "answers")["cards"][0]
    assert before["prompt"] == old["text"] and "portmanteau" in "".join(text for _, text in before["now"])


def test_pause_is_asked_once_and_the_page_says_what_became_of_it(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 3)
    at = opened("watch", store)
    button(at, "pause_or_resume").click().run()
    (command,) = store.commands(run_id)
    assert command["kind"] == "pause" and "Pause: asked." in shown(at)
    assert button(at, "pause_or_resume").disabled
    store.acknowledge(command["id"])
    at.run()
    assert "Pause: seen, under way." in shown(at)
    store.finish(command["id"], "It is the wrong moment.")
    at.run()
    assert "Pause: refused. It is the wrong moment." in shown(at)


def test_a_setting_is_used_from_the_next_step_on_shown_with_its_step_and_undone_by_one_click(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 6)
    at = opened("watch", store, run=run_id)

    def rate() -> Any:
        return next(field for field in at.number_input if (field.key or "").endswith("optimizer.learning_rate"))

    was = rate().value
    button(at, "run_settings_use").click().run()
    assert not store.commands(run_id), "nothing was changed"
    rate().set_value(2e-4)
    button(at, "run_settings_use").click().run()
    (command,) = store.commands(run_id)
    assert (command["kind"], command["payload"]) == ("set", {"set": {"optimizer.learning_rate": 2e-4}})
    store.set_config(
        run_id, RunConfig.from_dict(store.run(run_id)["config"]).changed(7, command["payload"]["set"]).to_dict()
    )
    store.finish(command["id"], step=7)
    at.run()
    assert "Settings: in force from step 7 on." in shown(at) and "From step 7 on: learning rate 2e-4" in shown(at)
    assert rate().value == 2e-4, "also where it was changed elsewhere"
    before = {"optimizer.learning_rate": was}
    changed = {**command["payload"]["set"], "guard.retain_budget": 0.5}
    events = [("changed", {"set": changed, "before": before})]
    store.append_step(run_id, 7, points={"forget_loss": 1.0}, events=events)
    at.run()
    assert "Step 7: learning rate" in shown(at) and "From step 7 on" not in shown(at)
    assert view.load(store, run_id).budget == 0.5, "the newest budget counts"
    (row,) = table_of(opened("runs", store))
    assert row["learning rate"][0] == "2e-4"
    next(b for b in at.button if (b.key or "").startswith("undo ")).click().run()
    assert store.commands(run_id)[-1]["payload"] == {"set": before}


def test_buttons_that_cannot_be_pressed_stay_and_give_their_reason(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 3)
    at = opened("watch", store)
    step = button(at, "step_once")
    assert step.disabled and "Pause it first" in step.help
    store.set_status(run_id, "finished", "It went through its 20 steps.")
    at.run()
    assert all(button(at, key).disabled and button(at, key).help for key in ("pause_or_resume", "step_once", "stop"))


def test_a_guard_pause_says_why(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 5)
    store.append_step(
        run_id,
        5,
        points={},
        events=[("guard", {"rule": "retain_budget", "sentence": "The budget is used up."})],
        status="paused",
    )
    assert "The budget is used up." in shown(opened("watch", store))


@pytest.mark.slow
@pytest.mark.parametrize(
    "status", some_quick(["queued", "loading", "baseline", "failed", "interrupted", "stopped", "finished"], 2)
)
def test_watch_draws_every_state_without_a_step(store: RunStore, status: str) -> None:
    run_id = begin(store)
    store.set_status(run_id, status, "a reason for a person")
    at = opened("watch", store)
    assert component(at, "answers")["cards"][0]["state"] == "waiting"


def test_a_failed_run_says_why_and_what_to_do_next(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 5, status="failed", reason="The disk is full.")
    at = opened("watch", store)
    assert "The disk is full." in shown(at) and "Resume goes on from step 5." in shown(at)
    assert button(at, "pause_or_resume").label == "Resume" and not button(at, "pause_or_resume").disabled


def test_a_checkpoint_that_was_deleted_from_the_disk_is_not_promised(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 5, status="interrupted", reason="The process that drove it is gone.")
    (store.home / "checkpoints" / run_id / "step-000003" / "state.json").write_text("{}")
    with store.write() as conn:
        conn.execute("UPDATE checkpoints SET complete = 1 WHERE run_id = ? AND step = 3", (run_id,))
    (store.home / "checkpoints" / run_id / "step-000005" / "state.json").unlink()
    assert "Resume goes on from there" in shown(opened("watch", store)) and "step 3" in shown(opened("watch", store))


def test_a_resume_that_passed_a_damaged_checkpoint_over_says_so_and_its_adapter_is_not_taken_away(
    store: RunStore,
) -> None:
    run_id = begin(store)
    fill(store, run_id, 5, status="stopped")
    told = "The checkpoint of step 5 is damaged. The run goes on from step 4."
    store.add_event(run_id, "checkpoint_damaged", {"checkpoint": 5, "sentence": told}, 4)
    store.set_status(run_id, "running", None, "resumed", {"from_step": 4})
    assert told in shown(opened("watch", store))
    store.set_status(run_id, "running", None, "resumed", {"from_step": 5})
    assert told not in shown(opened("watch", store))
    store.set_status(run_id, "stopped")
    (store.home / "checkpoints" / run_id / "step-000005" / "adapter_config.json").write_text("[]")
    at = opened("runs", store, run=run_id)
    at.session_state["run_export"] = True
    at.run()
    made = at.session_state["export_made"]
    assert made["folder"] is None and "step 5 is damaged" in made["why"]


def test_an_interrupted_run_offers_resume(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 5, status="interrupted", reason="The process that drove it is gone; it had got to step 5.")
    at = opened("watch", store)
    button(at, "pause_or_resume").click().run()
    assert store.commands(run_id)[-1]["kind"] == "resume"


@pytest.mark.slow
def test_a_run_that_began_with_other_versions_says_so_before_it_is_resumed_and_from_then_on(store: RunStore) -> None:
    installed = provenance.versions()
    run_id = begin(store)
    store.set_provenance(run_id, {"versions": {**installed, "transformers": "5.0.1"}})
    fill(store, run_id, 5, status="interrupted", reason="The process that drove it is gone.")
    store.release(run_id, "elsewhere:1:test")
    before = f"It would go on with transformers {installed['transformers']} instead of 5.0.1"
    assert before in shown(opened("watch", store)) and "Resume goes on from step 5." in shown(opened("watch", store))
    sentence = provenance.warning(["transformers 5.24.0 instead of 5.0.1"])
    store.claim(run_id, "elsewhere:1:test", 600)
    store.set_status(run_id, "running", None, "resumed", {"from_step": 5, "sentence": sentence})
    assert sentence in shown(opened("watch", store))


def test_a_run_with_the_versions_that_are_installed_has_no_warning(store: RunStore) -> None:
    run_id = begin(store)
    store.set_provenance(run_id, {"versions": provenance.versions()})
    fill(store, run_id, 5, status="interrupted", reason="The process that drove it is gone.")
    store.release(run_id, "elsewhere:1:test")
    assert "go on with" not in shown(opened("watch", store))


def test_a_waiting_run_names_the_one_it_waits_for(store: RunStore) -> None:
    fill(store, begin(store), 5)
    waiting = begin(store, "second")
    assert "Waiting for “first light”, which is at step 5" in shown(opened("watch", store, run=waiting))


def test_a_run_that_waits_for_a_paused_one_can_begin_now_and_the_paused_one_says_who_waits(store: RunStore) -> None:
    held = begin(store)
    fill(store, held, 5, status="paused", reason="Paused by hand.")
    waiting = begin(store, "second")
    store.release(waiting, "elsewhere:1:test")
    assert "“second” waits." in shown(opened("watch", store, run=held))
    at = opened("watch", store, run=waiting)
    assert "Waiting for “first light”, which is paused at step 5" in shown(at)
    now = button(at, "pause_or_resume")
    assert now.label == "Begin now" and "set aside whole" in now.help
    now.click().run()
    assert [command["kind"] for command in store.commands(waiting)] == ["resume"]
    store.set_status(held, "running")
    assert button(opened("watch", store, run=waiting), "pause_or_resume").label == "Pause"


@pytest.mark.parametrize("status", ["finished", "stopped", "running"])
def test_a_run_that_has_ended_offers_ways_on(store: RunStore, status: str) -> None:
    run_id = begin(store)
    fill(store, run_id, 5, status=status)
    at = opened("watch", store, run=run_id)
    offered = {found.label for found in at.button}
    ways = {"Compare before and after", "Export", "New run like this"}
    assert ways & offered == (set() if status == "running" else ways)
    assert ("next_text" in {field.key for field in at.text_input}) is (status != "running")


def test_every_gauge_and_loss_is_explained_without_a_pointer(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 3)
    at = opened("watch", store)
    explained = next(e.proto.body for e in at.get("html") if "What these numbers mean" in e.proto.body)
    for name in ("forget_loss", "holdout_loss", "gradient_norm", "forget_answer_probability"):
        assert str(escape(RECORDED[name].help)) in explained
    store.append_step(run_id, 4, points={"forget_loss": 0.9, "gradient_norm": 7.0})
    at.run()
    assert explained in [e.proto.body for e in at.get("html")], "a tick leaves it as it is, opened or closed"


@pytest.mark.parametrize("seconds", [0.4, 2.5])
def test_the_time_of_a_step_has_one_unit(seconds: float) -> None:
    run = View({"status": "running", "last_step": 3, "config": {"schedule": {"steps": 10}}})
    run.numbers["step_seconds"] = ([1, 2, 3], [seconds] * 3)
    assert headline.pace(run).startswith(f"{three(seconds)} s a step · {duration(7 * seconds)} left")


def test_a_run_that_is_gone_is_said_to_be_gone(app: AppTest) -> None:
    app.query_params["run"] = "deadbeef"
    app.run()
    assert "There is no run deadbeef any more." in shown(app) and not app.exception


def test_a_comparison_whose_runs_are_gone_shows_no_other_in_their_place(app: AppTest) -> None:
    run_id = begin(process.objects["store"])
    fill(process.objects["store"], run_id, 3)
    app.query_params["a"], app.query_params["b"] = "deadbeef@0", "deadbeef@3"
    app.switch_page("pages/compare.py").run()
    assert "There is no run deadbeef" in shown(app) and "answers changed" not in shown(app)
    button(app, "compare_last").click().run()
    assert app.query_params["b"] == f"{run_id}@3" and "answers changed" in shown(app)


# -------------------------------------------------------------------------------------------------- hostile text


@pytest.mark.slow
@pytest.mark.parametrize("text", some_quick(HOSTILE, 2))
def test_hostile_answers_are_text_on_every_page(store: RunStore, text: str) -> None:
    run_id = begin(store, name=text[:60].strip())
    fill(store, run_id, 5, now=text)
    watch, compare, runs = (opened(page, store, run=run_id) for page in ("watch", "compare", "runs"))
    answer = "".join(piece for _, piece in component(watch, "answers")["cards"][0]["now"])
    assert answer.replace("␣", " ") == text  # the component writes it as text nodes
    for at in (watch, compare, runs):
        assert "<img" not in shown(at)
        assert not any(text[:20] in element.value for element in at.markdown)


# ------------------------------------------------------------------------------------------------------ compare


def test_compare_marks_the_second_column_against_the_first(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = opened("compare", store, a=f"{run_id}@2", b=f"{run_id}@6")
    assert "From A · step 2 to B · step 6, 2 of 4 answers changed." in shown(at)
    assert "<ins>portmanteau" in shown(at) and "the same" in shown(at)


def test_an_edited_question_has_its_answer_before_step_1_in_the_column_of_step_0(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    new = store.edit_prompt(run_id, 0, "forget", "In new words?", 6)
    store.add_responses(run_id, [{"step": s, "prompt_id": new, "text": f"new words at {s}"} for s in (0, 6)])
    at = shown(opened("compare", store, a=f"{run_id}@0", b=f"{run_id}@7"))
    row = next(part for part in at.split("<section") if "In new words?" in part)
    assert "words at <del>0</del>" in row and "words at <ins>6</ins>" in row
    assert "Asked in these words since step 6." in row and "not asked at this step" not in row
    later = shown(opened("compare", store, a=f"{run_id}@2", b=f"{run_id}@7"))
    assert "not asked at this step" in next(part for part in later.split("<section") if "In new words?" in part)


def test_the_vertical_range_follows_the_zoom_on_compare(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    ranges, zooms = [], [None, {"range": [1, 3]}]

    def reported(data: dict[str, Any], key: str, on_zoomed_change: Callable[[], None], **_: Any) -> None:
        ranges.append(json.loads(data["figure"])["layout"]["yaxis2"]["range"])
        if zooms and (zoom := zooms.pop(0)):
            st.session_state[key] = SimpleNamespace(zoomed=zoom)
            on_zoomed_change()

    monkeypatch.setattr(chart, "live_chart", reported)
    with store.write() as conn:
        conn.execute("UPDATE points SET value = 9 WHERE step = 7 AND name = 'holdout_loss'")
    at = opened("compare", store, a=f"{run_id}@0", b=f"{run_id}@7")
    assert button(at, "compare_whole").disabled
    at.run()
    at.run()
    assert ranges[0][1] > 500 and ranges[-1][1] < 20, "the spike of step 7 is out of sight"
    button(at, "compare_whole").click().run()
    assert ranges[-1] == ranges[0]


def test_without_an_address_compare_shows_the_start_and_the_end(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = opened("compare", store)
    assert at.query_params["a"] == f"{run_id}@0" and at.query_params["b"] == f"{run_id}@7"


@pytest.mark.slow
def test_compare_slides_adds_and_removes_columns_of_two_runs(store: RunStore) -> None:
    one, other = begin(store), begin(store, "second")
    fill(store, one, 7)
    fill(store, other, 5)
    at = opened("compare", store, a=f"{one}@0", b=f"{other}@5")
    at.slider(key="column_step_1").set_value(3).run()
    assert at.query_params["b"] == f"{other}@3"
    button(at, "column_add").click().run()
    assert "c" in at.query_params
    button(at, "column_remove_0").click().run()
    assert at.query_params["a"] == f"{other}@3" and "c" not in at.query_params


@pytest.mark.slow
def test_a_question_on_compare_is_asked_of_every_chosen_step(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    at = opened("compare", store, a=f"{run_id}@2", b=f"{run_id}@6")
    at.text_input(key="compare_question").set_value("Who is Bert?")
    next(found for found in at.button if found.label == "Ask").click().run()
    (command,) = store.commands(run_id)
    assert command["payload"] == {"steps": [2, 6], "text": "Who is Bert?"}
    probe = store.add_probe(run_id, "Who is Bert?")
    store.add_responses(run_id, [{"step": step, "prompt_id": probe, "text": f"Bert at {step}"} for step in (2, 6)])
    store.add_event(run_id, "probed", {"steps": [2, 6]})
    at.run()
    assert "Bert at " in shown(at) and "answered by this step&#39;s checkpoint" in shown(at)


@pytest.mark.slow
def test_a_deleted_checkpoint_leaves_the_text_and_disables_the_question_with_the_reason(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7)
    folder = Path(store.home) / "checkpoints" / run_id / "step-000006"
    (folder / "adapter_config.json").unlink()
    folder.rmdir()
    at = opened("compare", store, a=f"{run_id}@2", b=f"{run_id}@6")
    assert "portmanteau" in shown(at) and "The checkpoint near B · step 6 is gone from the disk" in shown(at)
    assert at.text_input(key="compare_question").disabled


# --------------------------------------------------------------------------------------------------------- runs


def test_runs_lists_what_there_is_and_numbers_sort_as_numbers(store: RunStore) -> None:
    first, other = begin(store), begin(store, "second", steps=200)
    fill(store, first, 7, status="stopped")
    fill(store, other, 11)
    newest, oldest = table_of(opened("runs", store))
    shown_there = {name: cell[0] for name, cell in oldest.items()}
    assert (shown_there["name"], shown_there["word"], shown_there["step"]) == ("first light", TARGET, "7 of 20")
    assert (shown_there["forget loss"], shown_there["holdout loss"]) == ("0.100 → 0.800", "+1.4\u00a0%")
    config = (store.run(first) or {})["config"]
    rate = config["optimizer"]["learning_rate"]
    assert shown_there["recipe"] == PRESETS[config["preset"]].label and shown_there["model"] == "bundled"
    assert (oldest["learning rate"][1], float(shown_there["learning rate"])) == (rate, rate)
    for name in ("step", "forget loss", "holdout loss", "forgotten", "best step"):
        assert isinstance(oldest[name][1], float), name
    assert oldest["step"][1] < newest["step"][1], "as numbers: as text 7 comes after 11"
    assert oldest["damage"] == ["–", None]


def test_a_row_that_is_picked_is_chosen_and_one_that_is_opened_is_watched(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = begin(store), begin(store, "second")
    fill(store, first, 3)
    reports = [("picked", first)]

    def reported(data: dict[str, Any], key: str, **callbacks: Callable[[], None]) -> None:
        if reports:
            kind, run_id = reports.pop()
            st.session_state[key] = SimpleNamespace(**{kind: {"id": run_id, "nonce": 0.5}})
            callbacks[f"on_{kind}_change"]()

    monkeypatch.setattr(choices, "choices", reported)
    at = opened("runs", store)
    assert "second" in shown(at)
    at.run()
    assert "<h2>first light " in shown(at) and "<h2>second" not in shown(at)


def test_a_run_in_the_address_that_is_gone_is_said_to_be_gone_on_every_page(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 3)
    for page in ("runs", "data"):
        assert "There is no run deadbeef" in shown(opened(page, store, run="deadbeef")), page
    one_gone = opened("compare", store, a="deadbeef@0", b=f"{run_id}@99", c="nonsense")
    for sentence in (
        "There is no run deadbeef",
        "has got to step 3; there is no step 99 yet",
        "names no step of a run",
    ):
        assert sentence in shown(one_gone)
    assert one_gone.query_params["a"] == f"{run_id}@3" and "b" not in one_gone.query_params
    one_gone.run()
    assert "There is no run deadbeef" in shown(one_gone), "until a person chooses other columns"
    button(one_gone, "column_add").click().run()
    assert "There is no run deadbeef" not in shown(one_gone)


def test_deleting_asks_twice_and_names_what_is_lost(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 7, status="stopped")
    store.release(run_id, "elsewhere:1:test")
    at = opened("runs", store, run=run_id)
    button(at, "run_delete").click().run()
    assert "7 steps, 32 answers and 8 checkpoints" in shown(at)
    button(at, "run_delete_no").click().run()
    assert store.run(run_id)
    button(at, "run_delete").click().run()
    button(at, "run_delete_yes").click().run()
    assert store.run(run_id) is None and "No run yet" in shown(at)


def test_a_run_that_is_driven_cannot_be_deleted(store: RunStore) -> None:
    fill(store, begin(store), 3)
    delete = button(opened("runs", store), "run_delete")
    assert delete.disabled and "stop it first" in delete.help


def test_the_export_offers_numbers_answers_everything_and_the_adapter(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 3, status="stopped")
    at = opened("runs", store)
    assert not at.get("download_button")  # nothing is made before it is asked for
    at.session_state["run_export"] = True
    at.run()
    labels = {element.label for element in at.get("download_button")}
    assert labels == {"Numbers, CSV", "Answers, CSV", "Everything, JSON", "Adapter, zip"}
    made = at.session_state["export_made"]
    store.append_step(run_id, 4, points={"forget_loss": 9.0})
    at.run()
    assert at.session_state["export_made"] == made  # a tick does not replace what is being clicked at


# ---------------------------------------------------------------------------------------------------- read-only


@pytest.mark.slow
def test_a_store_from_a_newer_version_is_shown_and_not_changed(store: RunStore) -> None:
    run_id = begin(store)
    fill(store, run_id, 5, status="paused")
    home = store.home
    store.close()
    conn = sqlite3.connect(home / "lethe.db")
    conn.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('lethe', '999_later', '2030')"
    )
    conn.commit()
    conn.close()
    newer = RunStore(home)
    assert newer.read_only and newer.notice
    for page in ("watch", "compare", "runs"):
        assert "nothing can be changed" in shown(opened(page, newer))
    at = opened("watch", newer)
    assert all(button(at, key).disabled for key in ("pause_or_resume", "step_once", "stop"))
    assert button(opened("watch", newer, new="1"), "start_run").disabled
    newer.close()


def test_a_page_without_a_store_says_how_to_start() -> None:
    at = AppTest.from_file(str(ROOT / "pages" / "watch.py"), default_timeout=30)
    at.session_state["at_the_entry_point"] = True
    at.run()
    assert "streamlit run app.py" in shown(at)
