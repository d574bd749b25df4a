"""A run as pages read it: loaded from the store once, then extended by new rows."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pages.run import story
from pages.run.readings import Readings
from unlearn_core.methods import METHODS
from unlearn_core.metrics import LOSS, METRICS, SETS, budgeted, budgeted_set
from unlearn_core.settings.run_config import settings_at
from unlearn_core.training.milestones import STAND_IN_KL, Course, Milestones, course_of, is_asked, levels_of, milestones
from unlearn_core.world import topic_of

if TYPE_CHECKING:
    from storage import RunStore

ANSWER_PROBABILITY = METRICS["answer_probability"]
LIVE = ("loading", "baseline", "running")
BEFORE_STEP_ONE = ("queued", "loading", "baseline")
RESUMABLE = ("interrupted", "stopped", "failed", "paused")
# After these, rows of steps that were already read may have changed.
REWRITING = {"resumed", "prompt_edited", "interrupted", "probed", "started"}
CURVES = (*map(LOSS.point, SETS), STAND_IN_KL)  # read and held whole: they are drawn, and milestones are found in them
MOST_VIEWS = 8  # of one process; Compare shows four

Numbers = Mapping[str, tuple[Sequence[int], Sequence[float]]]


@dataclass
class View:
    """One run with its numbers and answers, as they were when it was read: whoever has one, it does not change.

    `numbers`: name -> (steps, values) of the CURVES; `readings`: of every other name, at a step. `answers`: step -> its
    rows.
    """

    run: dict[str, Any]
    numbers: dict[str, tuple[Sequence[int], Sequence[float]]] = field(default_factory=dict)
    answers: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    prompts: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    readings: Readings | None = None
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
        schedule = settings_at(self.run["config"], self.last_step + 1).get("schedule", {})
        return max(int(schedule.get("steps", 0)), self.last_step, 1)

    @property
    def budget(self) -> float | None:
        """The share by which the loss of `budgeted_set` may rise; None where no rule watches it."""
        return self.levels.get("retain_budget") or self.run["config"].get("guard", {}).get("retain_budget") or None

    @property
    def levels(self) -> dict[str, Any]:
        return levels_of(self.events)

    def about_a_stand_in(self, question: str) -> tuple[str, str] | None:
        """The same question about an invented name, and its answer before step 1; None where it was not asked."""
        for event in reversed(self.events):
            if event["kind"] == "stand_in" and question in event["payload"]["answers"]:
                other, answer = event["payload"]["answers"][question]
                return other, answer
        return None

    @cached_property
    def course(self) -> Course:
        """What milestones are found in."""
        method = METHODS.get(self.run["method"])
        rows = (row for step in self.answered for row in self.answers[step])
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

    @property
    def topic(self) -> str | None:
        return topic_of(self.run["target"])

    def value(self, name: str, step: int) -> float | None:
        """The newest value at or before `step`."""
        if name not in self.numbers:
            return self.readings.at(step).get(name) if self.readings else None
        steps, values = self.numbers[name]
        place = bisect_right(steps, step)
        return values[place - 1] if place else None

    def first(self, name: str) -> tuple[int, float] | None:
        """The first step that has a value of this name, and the value; None without any."""
        if name in self.numbers:
            steps, values = self.numbers[name]
            return (steps[0], values[0]) if len(steps) else None
        return self.readings.first.get(name) if self.readings else None

    def recent(self, name: str, count: int) -> Sequence[float]:
        """The values of the last `count` steps."""
        if name in self.numbers or self.readings is None:
            return self.numbers.get(name, ((), ()))[1][-count:]
        return self.readings.since(name, self.last_step - count)

    @property
    def recorded(self) -> set[str]:
        """The names that have a number at any step."""
        return {*self.numbers, *(self.readings.first if self.readings else ())}

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

    @cached_property
    def answered(self) -> list[int]:
        """The steps that have answers, rising."""
        return sorted(self.answers)

    def _answered_back(self, step: int) -> Iterator[int]:
        """The steps with answers at or before `step`, the newest first."""
        return reversed(self.answered[: bisect_right(self.answered, step)])

    def asked_at(self, step: int) -> list[dict[str, Any]]:
        """The wordings that are asked at `step`."""
        return [prompt for prompt in self.prompts if is_asked(prompt, step)]

    def answer(self, prompt_id: int, step: int) -> dict[str, Any] | None:
        """The newest answer to this wording at or before `step`."""
        for at in self._answered_back(step):
            for row in self.answers[at]:
                if row["prompt_id"] == prompt_id and row["sample"] == 0:
                    return row
        return None

    def about_target(self, step: int) -> tuple[int, list[str]] | None:
        """The newest step at or before `step` whose answers to the forget questions are known, and these answers."""
        for at in self._answered_back(step):
            active = {p["id"] for p in self.asked_at(at) if p["role"] == "forget"}
            if texts := [row["text"] for row in self.answers[at] if row["prompt_id"] in active]:
                return at, texts
        return None

    def answer_probability(self, step: int) -> float | None:
        """The metric of that name at `step`, over the forget questions."""
        rows = [self.answer(p["id"], step) for p in self.asked_at(step) if p["role"] == "forget"]
        return ANSWER_PROBABILITY.of_answers([row["target_probability"] or 0.0 for row in rows if row])

    def facts(self, step: int, waits_for: str | None = None) -> story.Facts:
        before, now = self.answer_probability(0), self.answer_probability(step)
        asked, answers = self.about_target(step) or (None, [])
        return story.Facts(
            status=self.status if step == self.last_step or self.status in BEFORE_STEP_ONE else "looking back",
            step=step,
            target=self.run["target"],
            reason=self.run["status_reason"],
            answers=answers,
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


# Of the process, not of a session: a closed page's session lives on for a while, and would hold its runs with it.
_VIEWS: WeakKeyDictionary[RunStore, OrderedDict[str, View]] = WeakKeyDictionary()
_LOADING = Lock()


def load(store: RunStore, run_id: str) -> View | None:
    """The run as it is now; the last few are kept for all sessions. None where there is no such run."""
    with _LOADING:
        views = _VIEWS.setdefault(store, OrderedDict())
        view, version = views.pop(run_id, None), store.data_version()
        if view is None or view.version != version:
            view = _read(store, run_id, view)
        if view is None:
            return None
        view.version = version
        views[run_id] = view
        while len(views) > MOST_VIEWS:
            views.popitem(last=False)
        return view


def _read(store: RunStore, run_id: str, known: View | None) -> View | None:
    """The run, of which only what is not in `known` is read from the store."""
    run = store.run(run_id)
    if run is None:
        return None
    news = store.events(run_id, after_id=known.events[-1]["id"] if known and known.events else 0)
    if known is None or run["last_step"] < known.last_step or any(event["kind"] in REWRITING for event in news):
        known, after, news = View(run), -1, store.events(run_id)
    else:
        after = known.last_step - 1  # the newest step may have been read before its answers were asked
    rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in store.answers(run_id, after_step=after):
        rows[row["step"]].append(row)
    prompts = store.prompts(run_id)
    answered = {row["prompt_id"] for row in known.answers.get(0, ())}
    if after >= 0 and any(prompt["id"] not in answered for prompt in prompts):
        rows[0] = store.answers(run_id, step=0)  # a new wording gets its "before" a moment later
    # What was deleted from the disk is no place to go back to, whatever the store remembers.
    checkpoints = [
        {**row, "complete": row["complete"] and store.has_checkpoint(row)} for row in store.checkpoints(run_id)
    ]
    return View(
        run,
        numbers=_extended(known.numbers, store.series(run_id, CURVES, after), after),
        answers={**known.answers, **rows},
        prompts=prompts,
        events=[*known.events, *news],
        checkpoints=checkpoints,
        commands=store.commands(run_id, limit=12),
        baseline=store.first_points(run_id),
        readings=Readings(store, run_id),
    )


def _extended(known: Numbers, new: Numbers, after: int) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    """The numbers up to step `after` as they are known, and the new ones behind them."""
    extended: dict[str, tuple[Sequence[int], Sequence[float]]] = {}
    for name in {**known, **new}:
        steps, values = known.get(name, ((), ()))
        kept = bisect_right(steps, after)
        more_steps, more_values = new.get(name, ((), ()))
        of_steps, of_values = array("q", steps[:kept]), array("d", values[:kept])
        of_steps.extend(more_steps)
        of_values.extend(more_values)
        extended[name] = of_steps, of_values
    return extended


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
