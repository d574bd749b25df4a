"""The preview thread: reads texts when a page asks, reports progress, can be cancelled, never takes the app down."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage import RunStore
from unlearn_core.running import preview
from unlearn_core.running.preview import PreviewThread


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def begin(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PreviewThread]]:
    monkeypatch.setattr(preview, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(preview, "PROGRESS_SECONDS", 0.0)
    begun: list[PreviewThread] = []

    def begin(inspect: Callable[..., dict]) -> PreviewThread:
        begun.append(PreviewThread(store, inspect))
        begun[-1].start()
        return begun[-1]

    yield begin
    for one in begun:
        one.stop()


def progress(read: int) -> Any:
    return SimpleNamespace(bytes_read=read, bytes_total=100, hits=1, seconds=0.1, seconds_left=None)


def ended(store: RunStore, command_id: int) -> dict[str, Any]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        command = next(c for c in store.commands(None) if c["id"] == command_id)
        if command["done_at"]:
            return command
        time.sleep(0.01)
    pytest.fail("the look has no end")


def events(store: RunStore, kind: str) -> list[dict[str, Any]]:
    return [event["payload"] for event in store.events(None) if event["kind"] == kind]


def test_what_was_found_lies_in_a_file_that_an_event_names(store, begin):
    def inspect(config: dict, report: Callable[[Any], None]) -> dict:
        report(progress(50))
        return {"occurrences": 3, "asked": config}

    begin(inspect)
    asked = store.request(None, "windows", {"config": {"seed": 7}})
    assert ended(store, asked)["error"] is None
    (told,) = events(store, "windows_progress")
    assert told["command"] == asked and told["bytes_read"] == 50
    (found,) = events(store, "windows_found")
    assert found["command"] == asked
    assert json.loads((store.home / found["file"]).read_text()) == {"occurrences": 3, "asked": {"seed": 7}}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("data.target is empty."), "invalid", "data.target is empty."),
        (KeyError("x"), "internal", "Internal error (KeyError: 'x'); the traceback is in "),
    ],
)
def test_a_look_that_fails_says_so_and_the_next_one_is_served(store, begin, error, code, words):
    def inspect(config: dict, report: Callable[[Any], None]) -> dict:
        if config.get("bad"):
            raise error
        return {}

    begin(inspect)
    bad, good = (store.request(None, "windows", {"config": {"bad": bad}}) for bad in (True, False))
    refused = ended(store, bad)
    assert words in refused["error"] and refused["code"] == code
    assert ended(store, good)["error"] is None


def test_a_look_can_be_called_off_and_leaves_no_file(store, begin):
    going = threading.Event()

    def inspect(config: dict, report: Callable[[Any], None]) -> dict:
        while True:
            going.set()
            report(progress(1))
            time.sleep(0.01)

    begin(inspect)
    asked = store.request(None, "windows", {"config": {}})
    assert going.wait(20)
    off = store.request(None, "cancel", {"command": asked})
    cancelled = ended(store, asked)
    assert "stopped" in cancelled["error"] and cancelled["code"] == "cancelled"
    assert ended(store, off)["error"] is None
    assert not list((store.home / preview.FOLDER).glob("*"))


def test_a_look_whose_process_is_gone_is_closed_and_a_cancel_of_nothing_too(store, begin, monkeypatch):
    monkeypatch.setattr(preview, "SILENT_SECONDS", 0.0)
    left = store.request(None, "windows", {"config": {}})
    assert store.acknowledge(left)  # by a process that was killed then
    begin(lambda config, report: {})
    closed = ended(store, left)
    assert "ended before" in closed["error"] and closed["code"] == "driver_gone"
    assert ended(store, store.request(None, "cancel", {"command": 999}))["error"] is None


def test_only_the_newest_results_are_kept(store, begin, monkeypatch):
    monkeypatch.setattr(preview, "FILES", 3)
    begin(lambda config, report: {"seed": config["seed"]})
    for seed in range(6):
        ended(store, store.request(None, "windows", {"config": {"seed": seed}}))
    kept = [json.loads(path.read_text())["seed"] for path in (store.home / preview.FOLDER).glob("*.json")]
    assert sorted(kept) == [3, 4, 5]
