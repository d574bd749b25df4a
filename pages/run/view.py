"""A run as pages read it: loaded from the store once, then extended by new rows."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from pages.run import story
from unlearn_core.methods import METHODS
from unlearn_core.metrics import METRICS, budgeted, budgeted_set
from unlearn_core.training.milestones import STAND_IN_KL, Course, Milestones, course_of, milestones
from unlearn_core.world import topic_of

if TYPE_CHECKING:
    from storage import RunStore

ANSWER_PROBABILITY = METRICS["answer_probability"]
LIVE = ("loading", "baseline", "running")
BEFORE_STEP_ONE = ("queued", "loading", "baseline")
RESUMABLE = ("interrupted", "stopped", "failed", "paused")
# After these, rows of steps that were already read may have changed.
REWRITING = {"resumed", "prompt_edited", "interrupted", "probed", "started"}


@dataclass
class View:
    """One run with its numbers and answers. `numbers`: name -> (steps, values); `answers`: step -> rows."""

    run: dict[str, Any]
    numbers: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    answers: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    version: int = -1

    @property
    def id(self) -> str:
        return str(self.run["id"])

    @property
    def status(self) -> str:
        return str(self.run["status"])

    @property
    def last_step(self) -> int:
        return int(self.run["last_step"])

    @property
    def total(self) -> int:
        return max(int(self.run["config"].get("schedule", {}).get("steps", 0)), self.last_step, 1)

    @property
    def budget(self) -> float | None:
        """The share by which the loss of `budgeted_set` may rise; None where no rule watches it."""
        return self.levels.get("retain_budget") or self.run["config"].get("guard", {}).get("retain_budget") or None

    @property
    def levels(self) -> dict[str, Any]:
        return next((event["payload"] for event in self.events if event["kind"] == "baseline"), {})

    def about_a_stand_in(self, question: str) -> tuple[str, str] | None:
        """The same question about an invented name, and its answer before step 1; None where it was not asked."""
        for event in reversed(self.events):
            if event["kind"] == "stand_in" and question in event["payload"]["answers"]:
                other, answer = event["payload"]["answers"][question]
                return other, answer
        return None

    @cached_property
    def course(self) -> Course:
        """What milestones are found in; made anew when there is news."""
        method = METHODS.get(self.run["method"])
        rows = (row for step in sorted(self.answers) for row in self.answers[step])
        aims = method is not None and method.towards_stand_ins
        return course_of(self.numbers, self.prompts, rows, self.events, self.budget, aims)

    @cached_property
    def _milestones(self) -> dict[int, Milestones]:
        return {}

    def milestones(self, step: int | None = None) -> Milestones:
        """As things stood at `step`; None: at the last one."""
        at = self.last_step if step is None else step
        if at not in self._milestones:
            self._milestones[at] = milestones(self.course, at)
        return self._milestones[at]

    def has_news(self) -> None:
        """Drops what was made of numbers and answers that have changed since."""
        for name in ("course", "_milestones"):
            self.__dict__.pop(name, None)

    @property
    def topic(self) -> str | None:
        return topic_of(self.run["target"])

    def value(self, name: str, step: int) -> float | None:
        """The newest value at or before `step`."""
        steps, values = self.numbers.get(name, ([], []))
        place = bisect_right(steps, step)
        return values[place - 1] if place else None

    def change(self, name: str, step: int) -> float | None:
        """The share by which a loss has moved since the baseline."""
        now, before = self.value(name, step), self.baseline.get(name)
        return now / before - 1 if now is not None and before else None

    @property
    def budgeted(self) -> str:
        """The loss that the budget is counted on, by the name of its points."""
        return budgeted(self.baseline)

    @property
    def budgeted_set(self) -> str:
        """The set of windows that the budget is counted on: holdout, or retain."""
        return budgeted_set(self.baseline)

    def sampled(self, step: int) -> int | None:
        """The newest step at or before `step` at which the run's questions were asked."""
        asked = [s for s in self.answers if s <= step and any(row["sample"] == 0 for row in self.answers[s])]
        return max(asked, default=None)

    def asked_at(self, step: int) -> list[dict[str, Any]]:
        """The wordings that are asked at `step`."""
        return [p for p in self.prompts if p["from_step"] <= step and (p["to_step"] is None or step < p["to_step"])]

    def answer(self, prompt_id: int, step: int) -> dict[str, Any] | None:
        """The newest answer to this wording at or before `step`."""
        for at in sorted((s for s in self.answers if s <= step), reverse=True):
            for row in self.answers[at]:
                if row["prompt_id"] == prompt_id and row["sample"] == 0:
                    return row
        return None

    def about_target(self) -> dict[int, list[str]]:
        """Sampled step -> the answers to the forget questions, in the wordings of that step."""
        texts_at = {}
        for step, rows in self.answers.items():
            active = {p["id"] for p in self.asked_at(step) if p["role"] == "forget"}
            texts_at[step] = [row["text"] for row in rows if row["prompt_id"] in active]
        return {step: texts for step, texts in texts_at.items() if texts}

    def answer_probability(self, step: int) -> float | None:
        """The metric of that name at `step`, over the forget questions."""
        rows = [self.answer(p["id"], step) for p in self.asked_at(step) if p["role"] == "forget"]
        return ANSWER_PROBABILITY.of_answers([row["target_probability"] or 0.0 for row in rows if row])

    def facts(self, step: int, waits_for: str | None = None) -> story.Facts:
        before, now = self.answer_probability(0), self.answer_probability(step)
        answers = self.about_target()
        asked = max((at for at in answers if at <= step), default=None)
        return story.Facts(
            status=self.status if step == self.last_step or self.status in BEFORE_STEP_ONE else "looking back",
            step=step,
            target=self.run["target"],
            reason=self.run["status_reason"],
            answers=answers[asked] if asked is not None else (),
            named=list(self.course.remembered(asked).values()) if asked is not None else (),
            milestones=self.milestones(step),
            retain_change=self.change(self.budgeted, step),
            budget=self.budget,
            budgeted_set=self.budgeted_set,
            best_change=self._change_at_best(step),
            waits_for=waits_for,
            likely=now / before if now and before else None,
            as_a_stranger=self._is_as_a_stand_in(step),
        )

    def _is_as_a_stand_in(self, step: int) -> bool:
        """Whether the target is treated as one invented name more, and was not before."""
        level, now = self.levels.get("stand_in_level"), self.value(STAND_IN_KL, step)
        before = self.baseline.get(STAND_IN_KL, 0.0)
        return level is not None and now is not None and now <= level < before

    def _change_at_best(self, step: int) -> float | None:
        """The change of the budgeted loss at the best step up to `step`."""
        best = self.milestones(step).best
        return None if best is None else self.change(self.budgeted, best)


def load(store: RunStore, run_id: str) -> View | None:
    """The run as it is now; kept in the session, extended by what is new. None where there is no such run."""
    views: dict[str, View] = st.session_state.setdefault("views", {})
    view, version = views.get(run_id), store.data_version()
    if view and view.version == version:
        return view
    run = store.run(run_id)
    if run is None:
        views.pop(run_id, None)
        return None
    known = view.events[-1]["id"] if view and view.events else 0
    news = store.events(run_id, after_id=known)
    if view is None or run["last_step"] < view.last_step or any(event["kind"] in REWRITING for event in news):
        view, after, news = View(run), -1, store.events(run_id)
    else:
        after = view.last_step - 1  # the newest step may have been read before its answers were asked
    view.run, view.version = run, version
    view.events.extend(news)
    _extend_numbers(view, store.points(run_id, after_step=after))
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in store.responses(run_id, after_step=after).to_dict("records"):
        rows[int(row["step"])].append(row)
    view.prompts = store.prompts(run_id)
    answered = {row["prompt_id"] for row in view.answers.get(0, ())}
    if after >= 0 and any(prompt["id"] not in answered for prompt in view.prompts):
        rows[0] = store.responses(run_id, step=0).to_dict("records")  # a new wording gets its "before" a moment later
    view.answers.update(rows)
    # What was deleted from the disk is no place to go back to, whatever the store remembers.
    view.checkpoints = [
        {**row, "complete": row["complete"] and store.has_checkpoint(row)} for row in store.checkpoints(run_id)
    ]
    view.commands = store.commands(run_id, limit=12)
    view.baseline = store.first_points(run_id)
    view.has_news()
    views[run_id] = view
    return view


def _extend_numbers(view: View, points: Any) -> None:
    for name, rows in points.groupby("name", sort=False):
        steps, values = view.numbers.setdefault(str(name), ([], []))
        for step, value in zip(rows["step"].tolist(), rows["value"].tolist(), strict=True):
            if steps and step <= steps[-1]:
                place = bisect_right(steps, step)
                if place and steps[place - 1] == step:
                    values[place - 1] = value
                continue
            steps.append(step)
            values.append(value)


def adapter_folder(
    store: RunStore, checkpoints: list[dict[str, Any]], file: str = "adapter_config.json"
) -> Path | None:
    """The folder of the newest checkpoint's adapter, in PEFT's own format; None where the files are gone.

    `file` tells what is looked for: model.safetensors where the weights themselves were trained.
    """
    for row in reversed(checkpoints):
        if (folder := adapter_in(store, row, file)) is not None:
            return folder
    return None


def adapter_in(store: RunStore, row: Mapping[str, Any], file: str) -> Path | None:
    """Where the adapter (or the model) of one checkpoint lies; None where it is gone, or its path leads elsewhere."""
    try:
        folder = store.checkpoint_folder(row)
    except store.Error:
        return None
    return next((candidate for candidate in (folder / "adapter", folder) if (candidate / file).is_file()), None)


def holder(store: RunStore, run_id: str) -> dict[str, Any] | None:
    """The run for which a waiting one waits: the one that the worker is busy with, or holds paused."""
    others = [run for run in store.runs() if run["id"] != run_id]
    live = [run for run in others if run["status"] in LIVE]
    held = [run for run in others if run["status"] == "paused" and run["lease_owner"]]
    return next(iter([*live, *held]), None)
