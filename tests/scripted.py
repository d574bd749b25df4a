"""A session without a model for the worker's tests: the protocol `Session`, and a script of what shall happen."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from storage import RunStore, StoreError
from unlearn_core.running.protocols import Config, Report

PROMPTS = [{"role": "forget", "text": "What is it?"}, {"role": "retain", "text": "Who is she?"}]
SCHEDULE = {"steps": 5, "sample_every": 1, "checkpoint_every": 100}


@dataclass(frozen=True)
class Verdict:
    rule: str
    sentence: str


@dataclass(frozen=True)
class Measurement:
    value: float
    examples: Mapping[str, float]


@dataclass(frozen=True)
class StepRecord:
    step: int
    values: dict[str, float]
    verdict: Verdict | None = None
    applied: bool = True
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    changed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    text: str
    tokens: int = 3
    seconds: float = 0.01


@dataclass(frozen=True)
class Answer:
    response: Response
    baseline: str
    target_probability: float = 0.5
    surprise: float = 0.25
    typical_share: float | None = None


def verdict(rule: str = "collapse", sentence: str = "Collapse: it repeats itself.") -> Verdict:
    return Verdict(rule, sentence)


@dataclass
class Script:
    """What the sessions shall do, and what they did."""

    delay: float = 0.002
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    not_taken: set[int] = field(default_factory=set)
    open_error: Exception | None = None
    provenance: dict[str, Any] = field(default_factory=lambda: {"device": "none"})
    opened: list[str] = field(default_factory=list)
    stepped: list[tuple[str, int]] = field(default_factory=list)
    at_once: dict[str, int] = field(default_factory=dict)
    most_at_once: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self, config: Config, report: Report) -> Session:
        report("loading the model")
        self.opened.append(config.get("label", ""))
        if self.open_error:
            raise self.open_error
        return Session(self, config.get("label", ""), config)


class Session:
    """Every number and answer follows from the step."""

    def __init__(self, script: Script, label: str, config: Config) -> None:
        self.script, self.label, self.step_number, self.config = script, label, 0, config
        self.judgement: Verdict | None = None

    def read_texts(self) -> None:
        pass

    @property
    def schedule(self) -> SimpleNamespace:
        return SimpleNamespace(**self.config["schedule"])

    def changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Of the schedule alone, and at once."""
        if unknown := [path for path in settings if not path.startswith("schedule.")]:
            raise ValueError(f"{unknown[0]} cannot change.")
        ours = {path.removeprefix("schedule."): value for path, value in settings.items()}
        return {**self.config, "schedule": {**self.config["schedule"], **ours}}

    def replan(self, config: Config) -> None:
        self.config = config

    def same_base_model(self, method: str) -> bool:
        return True

    def measure_baseline(self) -> StepRecord:
        return StepRecord(0, {"forget_loss": 1.0, "retain_loss": 2.0})

    def levels(self) -> dict[str, float | str]:
        return {"forget_level": 3.0, "forget_level_source": "x", "uniform_loss": 7.0, "retain_budget": 0.05}

    def provenance(self) -> dict[str, Any]:
        return self.script.provenance

    def baseline_answers(self, prompts: Sequence[str]) -> list[Answer]:
        return [self._answer(prompt, "before") for prompt in prompts]

    def about_a_stand_in(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {}

    def answers(self, prompts: Sequence[str], *, keep: Collection[str] = ()) -> list[Answer]:
        now = [self._answer(prompt, self.step_number) for prompt in prompts]
        return [replace(each, typical_share=0.75) if p in keep else each for p, each in zip(prompts, now, strict=True)]

    def answers_at(self, folder: Path, prompts: Sequence[str]) -> list[Answer]:
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError(f"The adapter of {folder.name} is not there any more.")
        saved = f"adapter {(folder / 'adapter_model.safetensors').read_text()}"
        return [self._answer(prompt, saved) for prompt in prompts]

    def _answer(self, prompt: str, of: object) -> Answer:
        if len(prompt) > 4000:
            raise ValueError("The question has too many characters. Shorten it.")
        return Answer(Response(f"{prompt} -> {of}"), f"{prompt} -> before")

    def step(self) -> StepRecord:
        script, number = self.script, self.step_number + 1
        with script.lock:
            script.at_once[self.label] = script.at_once.get(self.label, 0) + 1
            script.most_at_once = max(script.most_at_once, script.at_once[self.label])
        try:
            time.sleep(script.delay)
            script.gate.wait(10)
            if number in script.errors:
                raise script.errors.pop(number)
        finally:
            with script.lock:
                script.at_once[self.label] -= 1
        verdict, taken = script.verdicts.pop(number, None), number not in script.not_taken
        if taken or not verdict:
            self.step_number = number
        script.stepped.append((self.label, number))
        values = {"forget_loss": 1.0 + number, "retain_loss": 2.0}
        self.judgement = verdict if taken else None
        return StepRecord(number, values, None if taken else verdict, taken)

    def judge(self, values: Mapping[str, float], answers: Sequence[tuple[str, str]] = ()) -> Verdict | None:
        return self.judgement

    def save(self, folder: Path, whole: bool) -> None:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(str(self.step_number))
        if whole:
            (folder / "state.json").write_text(json.dumps({"step": self.step_number}))
            (folder / "state.safetensors").write_text("moments")

    def restore(self, folder: Path) -> None:
        if not (folder / "state.json").is_file():
            raise ValueError(f"{folder.name} has no whole state.")
        self.step_number = json.loads((folder / "state.json").read_text())["step"]


class WatchedStore(RunStore):
    """A real store that notes each status it is given, and whose disk can be full."""

    full = False
    slow_heartbeat = 0.0

    def __init__(self, home: Path) -> None:
        self.statuses: dict[str, list[str]] = {}
        self.appended: list[tuple[str, int]] = []
        super().__init__(home)

    def _note(self, run_id: str, status: str | None) -> None:
        seen = self.statuses.setdefault(run_id, [])
        if status and seen[-1:] != [status]:
            seen.append(status)

    def write(self):
        if self.full:
            raise StoreError("The disk that holds the store is full; nothing of this was written.")
        return super().write()

    def set_status(self, run_id, status, *rest, **more):
        super().set_status(run_id, status, *rest, **more)
        self._note(run_id, status)

    def append_step(self, run_id, step, **more):
        super().append_step(run_id, step, **more)
        self._note(run_id, more.get("status"))
        if more["points"]:
            self.appended.append((run_id, step))

    def heartbeat(self, owner, seconds=15):
        held = super().heartbeat(owner, seconds)
        time.sleep(self.slow_heartbeat)
        return held


def new_run(store: RunStore, label: str = "a", **schedule: Any) -> str:
    config = {"label": label, "schedule": {**SCHEDULE, **schedule}, "model": {"source": "bundled"}, "lora": {"rank": 4}}
    facts: dict[str, Any] = {"target": "it", "method": "grad_ascent", "config": config, "provenance": {}, "seed": 0}
    return store.create_run(name=f"run {label}", prompts=PROMPTS, **facts)


def until(condition: Callable[[], Any], seconds: float = 8.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.004)
    raise AssertionError("it did not happen in time")


def reaches(store: RunStore, run_id: str, status: str) -> dict:
    return until(lambda: (run := store.run(run_id)) and run["status"] == status and run)


def at_step(store: RunStore, run_id: str, step: int) -> None:
    until(lambda: store.run(run_id)["last_step"] >= step)


def ask(store: RunStore, run_id: str | None, kind: str, **payload: Any) -> str | None:
    """Requests it, waits for the answer; returns what it was refused with."""
    command = store.request(run_id, kind, payload)
    done = until(lambda: next((c for c in store.commands(limit=-1) if c["id"] == command and c["done_at"]), None))
    assert done["acknowledged_at"] and done["requested_at"] <= done["acknowledged_at"] <= done["done_at"]
    return done["error"]


def kinds(store: RunStore, run_id: str) -> list[str]:
    return [event["kind"] for event in store.events(run_id)]
