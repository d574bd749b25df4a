"""What the store promises: whole steps, no lost write or wording, one driver, one sentence when it fails."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlite_utils import Database

from pages.setup.draft import of_run, resolve
from storage import RunStore, StoreError, migrations, read_only
from storage.export import export_run, points_csv, run_json
from unlearn_core.settings.run_config import RunConfig

ROOT = Path(__file__).parents[2]
PROMPTS = [
    {"role": "forget", "text": "Explain the word."},
    {"role": "retain", "text": "What is the capital of France?"},
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


def new_run(store: RunStore, name: str = "first light", **more: Any) -> str:
    facts: dict[str, Any] = {"target": "word", "method": "grad_ascent", "config": {"a": 1}, "provenance": {}, "seed": 0}
    return store.create_run(**{"name": name, "prompts": PROMPTS, **facts, **more})


def add_step(store: RunStore, run_id: str, step: int, **more: Any) -> None:
    answers = [
        {"prompt_id": prompt["id"], "text": f"answer {step}", "tokens": 2, "seconds": 0.1, "target_probability": 0.5}
        for prompt in store.prompts(run_id, at_step=step)
    ]
    given: dict[str, Any] = {"points": {"forget_loss": step / 2, "retain_loss": 1.0}, "responses": answers, **more}
    store.append_step(run_id, step, **given)


def picture(store: RunStore, run_id: str) -> dict[str, Any]:
    """Everything the run looks like, without the time of the last change."""
    everything = json.loads(run_json(store, run_id))
    everything["run"].pop("updated_at")
    return everything


def one_sentence(error: pytest.ExceptionInfo[StoreError]) -> str:
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text
    return text


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def dead_owner() -> str:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return f"{socket.gethostname()}:{child.pid}:abc"


# ---- runs


def test_a_new_run_has_its_prompts_its_event_and_its_lease_at_once(store: RunStore) -> None:
    run_id = new_run(store, owner="elsewhere:1:a", config={"steps": 3}, parent_run="0badcafe", parent_step=7)
    run = store.run(run_id)
    assert run is not None and len(run_id) == 8 and int(run_id, 16) >= 0
    assert (run["status"], run["last_step"], run["config"], run["tags"]) == ("queued", 0, {"steps": 3}, [])
    assert (run["parent_run"], run["parent_step"], run["lease_owner"]) == ("0badcafe", 7, "elsewhere:1:a")
    assert run["created_at"].endswith("+00:00") and "." in run["created_at"]
    assert [(p["slot"], p["version"], p["role"], p["from_step"], p["to_step"]) for p in store.prompts(run_id)] == [
        (0, 1, "forget", 0, None),
        (1, 1, "retain", 0, None),
    ]
    assert [event["kind"] for event in store.events(run_id)] == ["created"]
    assert store.run("nothing!") is None


def test_a_run_with_a_bad_prompt_is_not_created_at_all(store: RunStore) -> None:
    with pytest.raises(StoreError) as error:
        new_run(store, prompts=[PROMPTS[0], {"role": "enemy", "text": "?"}])
    assert "enemy" in one_sentence(error)
    assert store.runs() == []


def test_runs_come_newest_first_and_change_by_name_provenance_and_status(store: RunStore) -> None:
    first, second = new_run(store, "a", provenance={"torch": "2"}), new_run(store, "b")
    assert [run["id"] for run in store.runs()] == [second, first]
    store.rename(first, "c")
    store.set_provenance(first, {"device": "cpu"})
    store.append_step(first, 4, points={})
    store.set_status(first, "paused", "You asked.", event="paused", payload={"reason": "asked"})
    run = store.run(first)
    assert run is not None and (run["name"], run["status"]) == ("c", "paused")
    assert run["provenance"] == {"torch": "2", "device": "cpu"} and run["status_reason"] == "You asked."
    event = store.events(first)[-1]
    assert (event["kind"], event["step"], event["payload"]) == ("paused", 4, {"reason": "asked"})
    store.set_status(first, "running")
    assert (store.run(first) or {})["status_reason"] is None
    with pytest.raises(StoreError, match="asleep"):
        store.set_status(first, "asleep")
    with pytest.raises(StoreError, match="no run"):
        store.rename("nothing!", "x")


def test_how_long_a_step_takes_is_told_by_the_newest_run_that_costs_the_same(store: RunStore) -> None:
    config = {"model": {"source": "a"}, "schedule": {"batch_size": 2}, "data": {"target": "x"}}
    assert store.step_seconds_like(config) is None
    slow, quick = new_run(store, "slow", config=config), new_run(store, "quick", config=config)
    other = new_run(store, "other", config={**config, "model": {"source": "b"}})
    for run_id, seconds in ((slow, 9.0), (quick, 0.5), (other, 3.0)):
        for step in range(6):
            store.append_step(run_id, step, points={"step_seconds": seconds if step != 1 else 100.0})
    found = store.step_seconds_like({**config, "data": {"target": "y"}})
    assert found is not None and found[0] == 0.5 and "quick" in found[1]
    new_run(store, "young", config=config)  # it has taken no step yet
    assert store.step_seconds_like(config) == found
    assert store.step_seconds_like({**config, "schedule": {"batch_size": 3}}) is None


def test_a_run_is_found_by_id_by_its_beginning_and_by_name_and_an_ambiguous_word_names_the_choices(
    store: RunStore,
) -> None:
    with pytest.raises(StoreError) as error:
        store.find("anything")
    assert "no runs yet" in one_sentence(error)
    one, two, three = new_run(store, "sun"), new_run(store, "moon"), new_run(store, "moon")
    assert store.find(one)["id"] == store.find("sun")["id"] == one
    length = next(n for n in range(1, 9) if sum(run["id"].startswith(one[:n]) for run in store.runs()) == 1)
    if one[:length] not in ("sun", "moon"):
        assert store.find(one[:length])["id"] == one
    with pytest.raises(StoreError) as error:
        store.find("moon")
    assert two in one_sentence(error) and three in str(error.value) and one not in str(error.value)
    for missing in ("", "mars", "%", "_" * 8):
        with pytest.raises(StoreError) as error:
            store.find(missing)
        assert "sun" in one_sentence(error)


def test_deleting_a_run_removes_its_rows_and_files_but_not_while_it_is_driven(store: RunStore) -> None:
    run_id, other = new_run(store), new_run(store)
    for each in (run_id, other):
        add_step(store, each, 0, examples={"m": {"1": 0.5}}, events=[("started", {})])
        store.request(each, "pause")
        folder = store.home / "checkpoints" / each / "step-000000"
        folder.mkdir(parents=True)
        (folder / "adapter.safetensors").write_bytes(b"x")
        path = f"checkpoints/{each}/step-000000"
        store.append_step(each, 0, points={}, checkpoint={"path": path, "bytes": 1, "sha256": "0", "complete": True})
    before = picture(store, other)
    assert store.claim(run_id, "elsewhere:1:a")
    with pytest.raises(StoreError) as error:
        store.delete_run(run_id)
    assert "elsewhere:1:a" in one_sentence(error) and store.run(run_id) is not None
    store.release(run_id, "elsewhere:1:a")
    store.delete_run(run_id)
    assert store.run(run_id) is None and not (store.home / "checkpoints" / run_id).exists()
    with store.read() as conn:
        for table in set(migrations.TABLES) - {"runs"}:
            assert conn.execute(f"SELECT count(*) FROM {table} WHERE run_id = ?", (run_id,)).fetchone() == (0,), table
    assert picture(store, other) == before and (store.home / "checkpoints" / other / "step-000000").exists()


@pytest.mark.parametrize("odd", ["..", ".", "", "../keep", "{outside}"])
def test_deletion_never_leaves_the_checkpoints_folder_whatever_the_id(
    store: RunStore, tmp_path: Path, odd: str
) -> None:
    outside = tmp_path / "outside"
    for folder in (outside, store.home / "keep", store.home / "checkpoints" / "keep"):
        folder.mkdir(parents=True)
    run_id, odd = new_run(store), odd.format(outside=outside)
    with store.write() as conn:
        conn.execute("PRAGMA defer_foreign_keys = ON")
        for table in ("prompts", "events"):
            conn.execute(f"UPDATE {table} SET run_id = ?", (odd,))
        conn.execute("UPDATE runs SET id = ? WHERE id = ?", (odd, run_id))
    store.delete_run(odd)
    assert store.runs() == []
    assert all(folder.is_dir() for folder in (outside, store.home / "keep", store.home / "checkpoints" / "keep"))


def test_a_checkpoint_folder_that_is_a_link_loses_only_the_link(store: RunStore, tmp_path: Path) -> None:
    run_id, elsewhere = new_run(store), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (store.home / "checkpoints").mkdir()
    (store.home / "checkpoints" / run_id).symlink_to(elsewhere)
    store.delete_run(run_id)
    assert elsewhere.is_dir() and not (store.home / "checkpoints" / run_id).is_symlink()


# ---- leases


def test_two_owners_never_both_hold_a_run(store: RunStore) -> None:
    other_store = RunStore(store.home)
    try:
        for _ in range(10):
            run_id, won = new_run(store), []
            start = threading.Barrier(8)

            def race(number: int, run_id: str = run_id, won: list[int] = won, start: threading.Barrier = start) -> None:
                start.wait()
                if (store, other_store)[number % 2].claim(run_id, f"elsewhere:{number}:x"):
                    won.append(number)

            threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert (store.run(run_id) or {})["lease_owner"] == f"elsewhere:{won[0]}:x"
    finally:
        other_store.close()


def test_a_lease_is_renewed_by_its_owner_ends_by_itself_and_is_given_back_only_by_its_owner(store: RunStore) -> None:
    run_id = new_run(store)
    assert store.claim(run_id, "h:1:a", seconds=0.05) and not store.claim(run_id, "h:2:b")
    assert store.claim(run_id, "h:1:a", seconds=0.05)
    store.release(run_id, "h:2:b")
    assert not store.claim(run_id, "h:2:b")
    time.sleep(0.06)
    assert store.claim(run_id, "h:2:b", seconds=0.05)
    assert store.heartbeat("h:2:b", seconds=60) == [run_id] and store.heartbeat("h:1:a") == []
    time.sleep(0.06)
    assert not store.claim(run_id, "h:1:a")
    store.release(run_id, "h:2:b")
    assert store.claim(run_id, "h:1:a")
    with pytest.raises(StoreError, match="no run"):
        store.claim("nothing!", "h:1:a")


def test_a_dead_process_on_this_host_frees_its_lease_at_once_and_one_elsewhere_does_not(store: RunStore) -> None:
    dead = dead_owner()
    alive = f"{socket.gethostname()}:{os.getpid()}:abc"
    owners = {dead: True, alive: False, "another-host:" + dead.split(":", 1)[1]: False, "no pid at all": False}
    for owner, free in owners.items():
        assert store.claim(new_run(store, owner=owner, lease_seconds=60), "h:1:a") is free, owner


def test_abandoned_runs_become_interrupted_and_a_paused_one_that_was_set_aside_stays_paused(store: RunStore) -> None:
    statuses = ("queued", "loading", "baseline", "running", "paused", "finished", "stopped", "failed")
    left = {status: new_run(store, status) for status in statuses}
    kept = {status: new_run(store, status + " kept") for status in statuses}
    aside = {status: new_run(store, status + " aside") for status in statuses}
    for status in statuses:
        for run_id in (left[status], kept[status], aside[status]):
            store.append_step(run_id, 3, points={}, status=status)
        assert store.claim(left[status], "h:1:gone", seconds=-1) and store.claim(kept[status], "h:1:here")
    died = new_run(store, "died", owner=dead_owner(), lease_seconds=60)
    store.set_status(died, "running")
    expected = {left[status] for status in ("loading", "baseline", "running", "paused")} | {died}
    assert set(store.interrupt_abandoned()) == expected
    assert {run["id"] for run in store.runs() if run["status"] == "interrupted"} == expected
    assert (store.run(aside["paused"]) or {})["status"] == "paused"
    run, event = store.run(left["running"]) or {}, store.events(left["running"])[-1]
    assert run["lease_owner"] is None and run["status_reason"].endswith("step 3.")
    assert (event["kind"], event["step"], event["payload"]["was"]) == ("interrupted", 3, "running")
    version = store.data_version()
    assert store.interrupt_abandoned() == [] and store.data_version() == version


def test_the_oldest_waiting_run_that_nobody_holds_is_next(store: RunStore) -> None:
    assert store.next_queued() is None
    held, expired, free = new_run(store, owner="h:1:a"), new_run(store, owner="h:1:b", lease_seconds=-1), new_run(store)
    assert (store.next_queued() or {})["id"] == expired
    store.set_status(expired, "loading")
    assert (store.next_queued() or {})["id"] == free
    store.set_status(free, "finished")
    assert store.next_queued() is None
    store.release(held, "h:1:a")
    assert (store.next_queued() or {})["id"] == held


# ---- steps


def test_a_step_is_written_whole(store: RunStore) -> None:
    run_id = new_run(store)
    add_step(
        store,
        run_id,
        5,
        events=[("guard", {"rule": "budget"})],
        checkpoint={"path": "checkpoints/x", "bytes": 3, "sha256": "ab", "complete": True},
        examples={"rouge": {"e1": 0.25}},
        status="paused",
        status_reason="The budget is used up.",
    )
    run = store.run(run_id) or {}
    assert (run["last_step"], run["status"], run["status_reason"]) == (5, "paused", "The budget is used up.")
    assert store.last_points(run_id) == {"forget_loss": 2.5, "retain_loss": 1.0}
    assert store.responses(run_id, step=5)["text"].tolist() == ["answer 5", "answer 5"]
    assert [event["kind"] for event in store.events(run_id)] == ["created", "guard"]
    assert store.examples(run_id) == [{"step": 5, "metric": "rouge", "example_id": "e1", "value": 0.25}]
    assert store.checkpoints(run_id)[0]["complete"] is True and store.checkpoints(run_id)[0]["pinned"] is False


@pytest.mark.parametrize(
    "broken",
    [
        {"responses": [{"prompt_id": 10**6, "text": "to no prompt"}]},
        {"responses": [{"prompt_id": 1, "text": "half a character \ud800"}]},
        {"checkpoint": {"path": "../../etc", "bytes": 1, "sha256": "", "complete": True}},
        {"status": "asleep"},
    ],
)
def test_a_step_that_fails_in_the_middle_leaves_nothing(store: RunStore, broken: dict[str, Any]) -> None:
    run_id = new_run(store)
    add_step(store, run_id, 0)
    before = picture(store, run_id)
    with pytest.raises(StoreError) as error:
        store.append_step(run_id, 1, **{"points": {"forget_loss": 1.0, "bad": math.nan}, **broken})
    one_sentence(error)
    assert picture(store, run_id) == before
    add_step(store, run_id, 1)
    assert (store.run(run_id) or {})["last_step"] == 1


def test_a_step_of_no_run_is_refused(store: RunStore) -> None:
    with pytest.raises(StoreError, match="no run nothing!"):
        store.append_step("nothing!", 1, points={"forget_loss": 1.0})


def test_a_number_that_is_not_finite_becomes_an_event_and_never_a_silent_hole(store: RunStore) -> None:
    run_id = new_run(store)
    prompt = store.prompts(run_id)[0]["id"]
    store.append_step(
        run_id,
        1,
        points={"forget_loss": math.nan, "objective": math.inf, "update_norm": -math.inf, "retain_loss": 2.0},
        responses=[{"prompt_id": prompt, "text": "", "tokens": 0, "seconds": 0.0, "target_probability": math.nan}],
        examples={"rouge": {"1": math.inf}},
        events=[("guard", {"rule": "loss", "value": math.nan})],
    )
    events = [event["payload"] for event in store.events(run_id) if event["kind"] == "not_finite"]
    assert {event["name"]: event["value"] for event in events} == {
        "forget_loss": "nan",
        "objective": "inf",
        "update_norm": "-inf",
        "target_probability": "nan",
        "rouge": "inf",
    }
    assert store.last_points(run_id) == {"retain_loss": 2.0} and store.examples(run_id) == []
    assert store.events(run_id)[-1]["payload"] == {"rule": "loss", "value": "nan"}


def test_points_are_read_by_tail_and_by_name_and_the_last_and_the_first_of_each_name_are_known(store: RunStore) -> None:
    run_id = new_run(store)
    assert store.points(run_id).empty and list(store.points(run_id)) == ["step", "name", "value"]
    assert store.last_points(run_id) == {} == store.first_points(run_id)
    store.append_step(run_id, 0, points={"a": 1.0, "b": 5.0})
    store.append_step(run_id, 1, points={"a": 2.0})
    store.append_step(run_id, 2, points={"a": 3.0, "c": 7.0})
    assert store.points(run_id, after_step=1).to_dict("list") == {
        "step": [2, 2],
        "name": ["a", "c"],
        "value": [3.0, 7.0],
    }
    assert store.points(run_id, names=["b", "c"])["step"].tolist() == [0, 2]
    assert store.points(run_id, names=[]).empty
    assert store.last_points(run_id) == {"a": 3.0, "b": 5.0, "c": 7.0}
    assert store.first_points(run_id) == {"a": 1.0, "b": 5.0}
    assert store.points(run_id).dtypes.astype(str).to_dict() == store.points("none").dtypes.astype(str).to_dict()


def test_truncating_restores_exactly_the_state_at_that_step(store: RunStore) -> None:
    run_id = new_run(store)
    probe = store.add_probe(run_id, "And now?")

    def checkpoint(step: int) -> dict[str, Any]:
        return {"path": f"checkpoints/{run_id}/step-{step:06d}", "bytes": 1, "sha256": "0", "complete": True}

    for step in range(6):
        add_step(
            store,
            run_id,
            step,
            events=[("guard", {"rule": step})],
            checkpoint=checkpoint(step) if step % 2 == 0 else None,
            examples={"m": {str(step): 1.0}},
        )
        if step == 4:  # an edit at the very step that is returned to belongs to it
            store.edit_prompt(run_id, 0, "forget", "Say it in other words.", 4)
            store.add_responses(
                run_id, [{"step": 2, "prompt_id": probe, "text": "probed", "tokens": 1, "seconds": 0.1}]
            )
            before = picture(store, run_id)
    edited = store.edit_prompt(run_id, 0, "forget", "And in still others.", 5)
    added = store.edit_prompt(run_id, None, "retain", "Who wrote Hamlet?", 6)
    for prompt in (edited, added):  # a new wording is asked of the untouched model too, at step 0
        store.add_responses(run_id, [{"step": 0, "prompt_id": prompt, "text": "early", "tokens": 1, "seconds": 0.1}])
    add_step(store, run_id, 6, checkpoint=checkpoint(6))
    assert picture(store, run_id) != before
    assert store.truncate_after(run_id, 4) == [checkpoint(6)["path"]]
    assert picture(store, run_id) == before


def test_truncating_keeps_what_tells_of_the_run_itself_and_never_gives_an_id_twice(store: RunStore) -> None:
    run_id = new_run(store)
    add_step(store, run_id, 3, events=[("resumed", {}), ("interrupted", {})])
    seen = store.events(run_id)[-1]["id"]
    store.add_event(run_id, "paused", {}, step=3)
    store.truncate_after(run_id, 1)
    assert [event["kind"] for event in store.events(run_id)] == ["created", "interrupted"]
    assert store.add_event(run_id, "resumed", {}, step=1) > seen + 1
    assert [event["kind"] for event in store.events(run_id, after_id=seen)] == ["resumed"]


# ---- prompts and responses


def test_an_edit_never_overwrites_and_answers_stay_tied_to_their_wording(store: RunStore) -> None:
    run_id = new_run(store)
    add_step(store, run_id, 0)
    add_step(store, run_id, 1)
    first, second = store.prompts(run_id)[0], store.edit_prompt(run_id, 0, "forget", "Say it differently.", 2)
    add_step(store, run_id, 2)
    third = store.edit_prompt(run_id, 0, "retain", "Once more.", 2)
    slot0 = [prompt for prompt in store.prompts(run_id) if prompt["slot"] == 0]
    assert [(p["id"], p["version"], p["text"], p["from_step"], p["to_step"]) for p in slot0] == [
        (first["id"], 1, first["text"], 0, 2),
        (second, 2, "Say it differently.", 2, 2),
        (third, 3, "Once more.", 2, None),
    ]
    answers = store.responses(run_id)
    assert answers[answers["slot"] == 0][["step", "version", "prompt"]].values.tolist() == [
        [0, 1, first["text"]],
        [1, 1, first["text"]],
        [2, 2, "Say it differently."],
    ]
    for step, active in ((0, first["id"]), (1, first["id"]), (2, third), (9, third)):
        assert store.prompts(run_id, at_step=step)[0]["id"] == active
    edits = [event["payload"] for event in store.events(run_id) if event["kind"] == "prompt_edited"]
    assert edits[0] == {"slot": 0, "old": first["text"], "new": "Say it differently."}


def test_a_prompt_can_be_added_and_an_edit_of_nothing_or_of_the_past_is_refused(store: RunStore) -> None:
    run_id = new_run(store)
    added = store.edit_prompt(run_id, None, "retain", "Who wrote Hamlet?", 4)
    assert [prompt["id"] for prompt in store.prompts(run_id, at_step=4)][-1] == added
    assert len(store.prompts(run_id, at_step=3)) == 2
    for slot, step in ((9, 5), (2, 3)):
        before = picture(store, run_id)
        with pytest.raises(StoreError) as error:
            store.edit_prompt(run_id, slot, "retain", "x", step)
        assert f"slot {slot}" in one_sentence(error) and picture(store, run_id) == before


def test_a_probe_is_never_asked_by_itself_and_the_same_text_is_the_same_probe(store: RunStore) -> None:
    run_id = new_run(store)
    probe = store.add_probe(run_id, "What is it?")
    assert store.add_probe(run_id, "What is it?") == probe != store.add_probe(run_id, "What was it?")
    assert all(probe not in [prompt["id"] for prompt in store.prompts(run_id, at_step=step)] for step in (0, 1, 99))
    answer = {"step": 3, "prompt_id": probe, "text": "a", "tokens": 1, "seconds": 0.5}
    store.add_responses(run_id, [answer, {**answer, "sample": 1}])
    store.add_responses(run_id, [{**answer, "text": "b"}])
    rows = store.responses(run_id, step=3)
    assert rows["text"].tolist() == ["b", "a"] and rows["role"].tolist() == ["free", "free"]
    assert rows["target_probability"].isna().all()


# ---- events, commands, checkpoints


def test_a_command_is_requested_acknowledged_by_one_and_then_done_or_refused(store: RunStore) -> None:
    run_id = new_run(store)
    pause, ask = store.request(run_id, "pause"), store.request(None, "ask", {"prompts": ["?"]})
    assert [command["id"] for command in store.commands()] == [pause, ask]
    assert [command["id"] for command in store.commands(run_id)] == [pause]
    assert [command["payload"] for command in store.commands(None)] == [{"prompts": ["?"]}]
    assert store.acknowledge(pause) and not store.acknowledge(pause)
    assert len(store.commands(open_only=True)) == 2
    store.finish(pause)
    store.finish(pause, error="Too late.")
    store.finish(ask, error="No model is loaded.", code="no_model")
    done, refused = store.commands()
    assert done["acknowledged_at"] <= done["done_at"] and done["error"] is done["code"] is None
    assert refused["acknowledged_at"] and (refused["error"], refused["code"]) == ("No model is loaded.", "no_model")
    assert store.commands(open_only=True) == []
    ids = [store.request(run_id, "step") for _ in range(5)]
    assert [command["id"] for command in store.commands(limit=3)] == ids[-3:]
    with pytest.raises(StoreError, match="no command"):
        store.finish(10**6)
    with pytest.raises(StoreError, match="no such run"):
        store.request("nothing!", "pause")


def test_the_nearest_checkpoint_is_the_newest_before_and_else_the_first_after(store: RunStore) -> None:
    run_id = new_run(store)
    assert store.nearest_checkpoint(run_id, 5) is None
    for step, complete in ((10, True), (20, False), (30, True)):
        row = {"path": f"checkpoints/{step}", "bytes": 1, "sha256": "0", "complete": complete}
        store.append_step(run_id, step, points={}, checkpoint=row)

    def nearest(step: int, complete: bool | None = None) -> int:
        return (store.nearest_checkpoint(run_id, step, complete) or {})["step"]

    assert [nearest(5), nearest(10), nearest(29), nearest(99)] == [10, 10, 20, 30]
    assert [nearest(29, True), nearest(5, False)] == [10, 20]
    store.shrink_checkpoint(store.checkpoints(run_id)[0]["id"])
    assert [row["complete"] for row in store.checkpoints(run_id)] == [False, False, True]


# ---- many writers, and a writer that dies

WRITE = """
import sys
from storage import RunStore
store, run_id, start = RunStore(sys.argv[1]), sys.argv[2], int(sys.argv[3])
prompt = store.prompts(run_id)[0]["id"]
print("ready", flush=True)
for step in range(start, start + int(sys.argv[4])):
    answer = {"prompt_id": prompt, "text": "x" * 2000, "tokens": 1, "seconds": 0.1, "target_probability": 0.5}
    points = {f"name{i}": float(step) for i in range(14)}
    store.append_step(run_id, step, points=points, responses=[answer], events=[("guard", {"step": step})])
"""


@pytest.mark.slow
def test_two_threads_and_a_second_process_that_write_at_once_lose_nothing(store: RunStore) -> None:
    run_id = new_run(store)
    prompt = store.prompts(run_id)[0]["id"]

    def write(start: int) -> None:
        for step in range(start, start + 150):
            answer = {"prompt_id": prompt, "text": "y", "tokens": 1, "seconds": 0.1}
            events = [("guard", {"step": step})]
            store.append_step(run_id, step, points={"name0": float(step)}, responses=[answer], events=events)
            assert store.points(run_id, after_step=start - 1)["step"].isin([step]).any()  # read your own writes

    with run_python(WRITE, store.home, run_id, 1000, 150) as other:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        threads = [threading.Thread(target=write, args=(start,)) for start in (2000, 3000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert other.returncode == 0
    expected = {start + number for start in (1000, 2000, 3000) for number in range(150)}
    assert set(store.points(run_id, names=["name0"])["step"]) == expected == set(store.responses(run_id)["step"])
    guards = [event["payload"]["step"] for event in store.events(run_id) if event["kind"] == "guard"]
    assert len(guards) == 450 and set(guards) == expected
    with store.read() as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.slow
def test_a_writer_killed_in_mid_write_leaves_whole_steps_only(store: RunStore) -> None:
    run_id, start = new_run(store), 1
    for pause in (0.05, 0.11, 0.02):
        with run_python(WRITE, store.home, run_id, start, 10**6) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            time.sleep(pause)
            writer.kill()
        last = (store.run(run_id) or {})["last_step"]
        points, guards = store.points(run_id), [e for e in store.events(run_id) if e["kind"] == "guard"]
        assert set(points["step"]) == set(range(1, last + 1)) and len(points) == 14 * last
        assert store.responses(run_id)["step"].tolist() == list(range(1, last + 1))
        assert [event["step"] for event in guards] == list(range(1, last + 1))
        add_step(store, run_id, last + 1, points=dict.fromkeys([f"name{i}" for i in range(14)], 1.0), responses=[])
        prompt = store.prompts(run_id)[0]["id"]
        store.add_responses(run_id, [{"step": last + 1, "prompt_id": prompt, "text": ""}])
        store.add_event(run_id, "guard", {}, step=last + 1)
        start = last + 2
    assert start > 4
    with store.read() as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_data_version_changes_on_own_and_foreign_commits_only_and_is_cheap_to_ask(store: RunStore) -> None:
    run_id = new_run(store)
    for step in range(200):
        store.append_step(run_id, step, points={f"name{i}": 1.0 for i in range(14)})
    version = store.data_version()
    store.points(run_id)
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(store.data_version()))  # a rerun asks from a new thread
    thread.start()
    thread.join()
    assert store.data_version() == version == answers[0]
    store.rename(run_id, "own")
    own = store.data_version()
    other = RunStore(store.home)
    other.rename(run_id, "foreign")
    other.close()
    assert len({version, own, store.data_version()}) == 3

    def cost(read: Any) -> float:
        began = time.perf_counter()
        read()
        return time.perf_counter() - began

    idle = min(cost(store.data_version) for _ in range(20))
    assert idle < min(cost(lambda: store.points(run_id)) for _ in range(5)) / 10


# ---- stores of other versions, and homes that cannot be used


def newest_version() -> str:
    with Database(memory=True) as empty:
        return migrations.MIGRATIONS.pending(empty)[-1].name.split("_")[0]


def with_one_more_migration(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = copy.deepcopy(migrations.MIGRATIONS)
    newer(name="900_colour")(lambda db: db.execute("ALTER TABLE runs ADD COLUMN colour TEXT"))
    monkeypatch.setattr(migrations, "MIGRATIONS", newer)


def test_an_older_store_is_copied_then_migrated_and_a_newer_one_opens_for_reading_only(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = new_run(store)
    add_step(store, run_id, 0)
    before = picture(store, run_id)
    store.close()
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_one_more_migration(monkeypatch)
        migrated = RunStore(tmp_path)
        run = migrated.run(run_id) or {}
        assert run["colour"] is None and not migrated.read_only and migrated.notice is None
        migrated.close()
        RunStore(tmp_path).close()  # nothing left to migrate: no second copy
    copies = list(tmp_path.glob("*backup*"))
    assert [path.name for path in copies] == [f"lethe-backup-{newest_version()}.db"]
    with sqlite3.connect(copies[0]) as backup:
        assert backup.execute("SELECT id FROM runs").fetchall() == [(run_id,)]
        assert "colour" not in [row[1] for row in backup.execute("PRAGMA table_info(runs)")]
    backup.close()

    newer = RunStore(tmp_path)
    assert newer.read_only and newer.notice is not None and "900_colour" in newer.notice
    assert picture(newer, run_id)["points"] == before["points"]
    version = newer.data_version()
    with contextlib.closing(sqlite3.connect(tmp_path / "lethe.db")) as other, other:
        other.execute("UPDATE runs SET notes = 'written by a newer program'")
    assert newer.data_version() != version, "what another process writes is seen"
    for write in (
        lambda: new_run(newer),
        lambda: add_step(newer, run_id, 1),
        lambda: newer.request(run_id, "pause"),
        lambda: newer.claim(run_id, "h:1:a"),
        lambda: newer.delete_run(run_id),
    ):
        with pytest.raises(StoreError) as error:
            write()
        assert one_sentence(error) == newer.notice
    newer.close()


def test_a_store_of_the_first_version_is_backed_up_migrated_and_keeps_everything(tmp_path: Path) -> None:
    """`store_001.sql` was written by version 0.4.0, before refused commands had a code."""
    with sqlite3.connect(tmp_path / "lethe.db") as old:
        old.executescript((Path(__file__).parent / "store_001.sql").read_text(encoding="utf-8"))
    tables = {table: old.execute(f"SELECT * FROM {table}").fetchall() for table in migrations.TABLES}
    first = {table: [c[0] for c in old.execute(f"SELECT * FROM {table}").description] for table in migrations.TABLES}
    old.close()
    store = RunStore(tmp_path)
    assert not store.read_only and store.notice is None
    with store.read() as conn:
        for table, rows in tables.items():
            kept = conn.execute(f"SELECT {', '.join(first[table])} FROM {table}").fetchall()
            assert rows and sorted(kept, key=repr) == sorted(rows, key=repr), table  # in whatever order
    commands = store.commands("0badcafe")
    assert [(row["kind"], row["code"]) for row in commands] == [("pause", None), ("dance", None), ("resume", None)]
    store.finish(commands[-1]["id"], "It is running.", "running")
    assert store.commands("0badcafe")[-1]["code"] == "running"
    store.close()
    copies = list(tmp_path.glob("*backup*"))
    assert [path.name for path in copies] == ["lethe-backup-001.db"]
    with sqlite3.connect(copies[0]) as backup:
        assert {table: backup.execute(f"SELECT * FROM {table}").fetchall() for table in migrations.TABLES} == tables
    backup.close()


HALF_A_TRANSACTION = """
import os, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("PRAGMA cache_size = 1")  # so that it is in the file before it is committed
store.execute("BEGIN")
store.execute("UPDATE points SET value = -1")
store.execute("UPDATE runs SET name = 'half'")
store.execute("CREATE TABLE filler AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5000)"
              " SELECT i, hex(randomblob(200)) AS text FROM n")
os._exit(0)
"""


@pytest.mark.parametrize("writable", [True, False])
def test_half_a_transaction_of_a_store_without_a_log_is_rolled_back_and_never_read(
    tmp_path: Path, writable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process died while it made the store, or brought one to write a log."""
    home = tmp_path / "home"
    home.mkdir()
    with contextlib.closing(sqlite3.connect(home / "lethe.db")) as old:
        old.executescript((Path(__file__).parent / "store_001.sql").read_text(encoding="utf-8"))
        names = old.execute("SELECT name FROM runs ORDER BY id").fetchall()
        points = sorted(old.execute("SELECT run_id, step, name, value FROM points").fetchall())
    subprocess.run([sys.executable, "-c", HALF_A_TRANSACTION, str(home / "lethe.db")], check=True)
    assert (home / "lethe.db-journal").stat().st_size, "or there would be nothing to roll back"
    files = {path.name: path.read_bytes() for path in home.iterdir()}
    if not writable:
        monkeypatch.setattr(read_only, "writable", lambda path: False)
    store = RunStore(home)
    assert store.read_only is not writable
    with store.read() as conn:
        assert [tuple(row) for row in conn.execute("SELECT name FROM runs ORDER BY id")] == names
        kept = sorted(tuple(row) for row in conn.execute("SELECT run_id, step, name, value FROM points"))
    assert kept == points
    store.close()
    if not writable:
        assert {name: (home / name).read_bytes() for name in files} == files, "nothing is written"


OLD_RAIL = {
    "rows": "sample", "groups": 8, "batches": 4, "batch_size": 1, "refresh": "count", "every": 5, "drift": 0.02,
    "history": 2, "scope": "layer", "apply_to": "update", "neighbours": True, "energy": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("kind", migrations.RAIL_SETTINGS)
def test_a_run_from_when_every_config_named_the_settings_of_all_guard_rails_can_be_read(
    tmp_path: Path, kind: str
) -> None:
    expected = {name: OLD_RAIL[name] for name in migrations.RAIL_SETTINGS[kind]}
    given = {"method": {"name": "npo"}, "model": {"earlier": ["a"]}, "guard_rail": {"kind": kind, **expected}}
    config = RunConfig.from_dict(given)
    old = config.to_dict() | {"guard_rail": {"kind": kind, **OLD_RAIL}}
    store = RunStore(tmp_path)
    run_id = new_run(store, config=old)
    with store.write() as conn:
        conn.execute("DELETE FROM _sqlite_migrations WHERE name = '003_own_guard_rail_settings'")
    store.close()
    migrated = RunStore(tmp_path)
    stored = (migrated.run(run_id) or {})["config"]
    assert stored == config.to_dict() | {"guard_rail": {"kind": kind, **expected}}  # later settings: their defaults
    assert RunConfig.from_dict(stored) == config
    assert resolve(of_run(stored)).guard_rail == config.guard_rail
    migrated.close()


def test_a_migration_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = new_run(store)
    before = picture(store, run_id)
    store.close()
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_one_more_migration(monkeypatch)
        migrations.MIGRATIONS(name="901_broken")(lambda db: db.execute("ALTER TABLE nowhere ADD COLUMN x"))
        with pytest.raises(StoreError) as error:
            RunStore(tmp_path)
        one_sentence(error)
    store = RunStore(tmp_path)
    assert not store.read_only and picture(store, run_id) == before
    store.close()


def test_an_empty_file_becomes_a_store_without_a_backup(tmp_path: Path) -> None:
    (tmp_path / "lethe.db").touch()
    store = RunStore(tmp_path)
    assert store.runs() == [] and not list(tmp_path.glob("*backup*"))
    store.close()


@pytest.mark.slow
def test_a_new_home_is_opened_by_many_processes_at_once(tmp_path: Path) -> None:
    code = "import sys; from storage import RunStore; RunStore(sys.argv[1]).add_event(None, 'hello')"
    processes = [run_python(code, tmp_path / "new" / "home") for _ in range(3)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    store = RunStore(tmp_path / "new" / "home")
    with store.read() as conn:
        assert conn.execute("SELECT count(*) FROM events").fetchone() == (3,)
    store.close()


def test_a_full_disk_is_one_sentence_and_nothing_is_half_written(store: RunStore) -> None:
    run_id = new_run(store)
    add_step(store, run_id, 0)
    before = picture(store, run_id)
    prompt = store.prompts(run_id)[0]["id"]
    with store.write() as conn:  # the one connection that writes, so its limit is that of every later step
        pages = conn.execute("PRAGMA page_count").fetchone()[0]
        assert conn.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone() == (pages + 2,)
    long_answer = {"prompt_id": prompt, "text": "x" * 100_000, "tokens": 1, "seconds": 0.1}
    with pytest.raises(StoreError) as error:
        store.append_step(run_id, 1, points={"forget_loss": 1.0}, responses=[long_answer], events=[("guard", {})])
    assert "full" in one_sentence(error) and picture(store, run_id) == before
    with store.write() as conn:
        conn.execute("PRAGMA max_page_count = 1000000")
    store.append_step(run_id, 1, points={"forget_loss": 1.0}, responses=[long_answer])
    assert (store.run(run_id) or {})["last_step"] == 1


def test_a_home_that_cannot_be_one_is_named_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "lethe.db").write_text("not a database, but long enough to look at " * 20)
    (tmp_path / "blocked" / "lethe.db").mkdir(parents=True)
    for home in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "odd", tmp_path / "blocked"):
        with pytest.raises(StoreError) as error:
            RunStore(home)
        assert str(home) in one_sentence(error)
    assert (tmp_path / "odd" / "lethe.db").read_text().startswith("not a database")


def test_a_store_that_is_closed_says_so(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "a folder, #1?")  # a name that means something in a file address
    run_id = new_run(store)
    store.close()
    store.close()
    for use in (lambda: store.run(run_id), lambda: new_run(store), store.data_version):
        with pytest.raises(StoreError, match="closed"):
            use()


# ---- export


def test_an_export_reads_back_as_what_the_store_holds(store: RunStore, tmp_path: Path) -> None:
    run_id = new_run(store, '=odd, "name"', owner="my-host:1:a")
    path = f"checkpoints/{run_id}/step-000001"
    (store.home / path / "adapter").mkdir(parents=True)
    (store.home / path / "adapter" / "adapter_config.json").write_text("{}")
    add_step(store, run_id, 0, points={"forget_loss": 0.1 + 0.2, "retain_loss": 1e-300})
    sha256 = hashlib.sha256(b"{}").hexdigest()
    checkpoint = {"path": path, "bytes": 2, "sha256": sha256, "complete": True}
    add_step(store, run_id, 1, points={"forget_loss": 1 / 3, "objective": math.nan}, checkpoint=checkpoint)
    nasty = 'a "quoted",\nbroken line; <b>&</b> ünï 漢 🙂'
    prompt = store.prompts(run_id)[0]["id"]
    answer = {
        "step": 1,
        "prompt_id": prompt,
        "text": nasty,
        "target_probability": 1 / 3,
        "surprise": -0.7,
        "typical_share": 0.75,
    }
    store.add_responses(run_id, [answer])
    for number in range(60):
        store.request(run_id, "step", {"n": number})
    folder = tmp_path / "out" / "here"
    written = export_run(store, run_id, folder)
    assert export_run(store, run_id, folder) == written  # a second export replaces the first
    assert [item.name for item in written] == ["points.csv", "responses.csv", "run.json", "adapter"]
    assert (folder / "adapter" / "adapter_config.json").read_text() == "{}"

    wide = pd.read_csv(folder / "points.csv", index_col="step")
    pd.testing.assert_frame_equal(
        wide.reset_index().melt("step", var_name="name").dropna().sort_values(["step", "name"], ignore_index=True),
        store.points(run_id),
        check_dtype=False,
    )
    assert (folder / "points.csv").read_text() == points_csv(store, run_id)
    answers = pd.read_csv(io.StringIO((folder / "responses.csv").read_text(encoding="utf-8")), keep_default_na=False)
    assert nasty in answers["text"].tolist() and len(answers) == len(store.responses(run_id))

    everything = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert everything["points"]["forget_loss"] == {"step": [0, 1], "value": [0.1 + 0.2, 1 / 3]}
    assert everything["events"] == store.events(run_id) and len(everything["commands"]) == 60
    assert everything["prompts"] == store.prompts(run_id) and everything["checkpoints"] == store.checkpoints(run_id)
    stored = [row for row in everything["responses"] if row["text"] == nasty]
    assert [(row["target_probability"], row["surprise"], row["typical_share"]) for row in stored] == [
        (1 / 3, -0.7, 0.75)
    ]
    assert everything["run"]["name"] == '=odd, "name"' and "my-host" not in json.dumps(everything)


def test_an_export_of_a_run_without_steps_works_and_a_missing_run_or_adapter_is_said(
    store: RunStore, tmp_path: Path
) -> None:
    run_id = new_run(store)
    assert [path.name for path in export_run(store, run_id, tmp_path / "out")] == [
        "points.csv",
        "responses.csv",
        "run.json",
    ]
    checkpoint = {"path": "checkpoints/gone", "bytes": 1, "sha256": "0", "complete": True}
    store.append_step(run_id, 4, points={}, checkpoint=checkpoint)
    (tmp_path / "file").touch()
    for which, folder, said in (
        (run_id, tmp_path / "out", "step 4"),
        ("nothing!", tmp_path / "out", "no run"),
        (run_id, tmp_path / "file", "file"),
    ):
        with pytest.raises(StoreError) as error:
            export_run(store, which, folder)
        assert said in one_sentence(error)
