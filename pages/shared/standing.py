"""How far runs have come, for lists of many: first and newest numbers and milestones, out of few rows of a long run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from unlearn_core.methods import METHODS
from unlearn_core.metrics import budgeted
from unlearn_core.training.collapse import most_undamaged
from unlearn_core.training.milestones import FORGET_LOSS, STAND_IN_KL, Milestones, course_of, milestones

if TYPE_CHECKING:
    from storage import RunStore

TAIL = 64  # steps that are read whole: a collapse is looked for from the newest step backwards

Series = tuple[Sequence[int], Sequence[float]]
Values = Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """`first`: the numbers of step 0; `last`: the newest of each name; `milestones`: as they stand at the last step."""

    first: Values
    last: Values
    milestones: Milestones


# Run -> when it was last changed, and its standing then. Of the process, so that every page and session has it.
_KNOWN: WeakKeyDictionary[RunStore, dict[str, tuple[str, Standing]]] = WeakKeyDictionary()
_LOCK = Lock()


def standings(store: RunStore, runs: Iterable[Mapping[str, Any]]) -> dict[str, Standing]:
    """Run id -> its standing. One that nobody has driven since it was last asked for is not read again."""
    with _LOCK:
        known, now = _KNOWN.get(store, {}), {}
        for run in runs:
            changed, standing = known.get(run["id"], ("", None))
            if standing is None or changed != run["updated_at"] or run["lease_owner"]:
                standing = standing_of(store, run)
            # A driver also changes what does not date the run, a question for one: with one, it is read every time.
            now[run["id"]] = "" if run["lease_owner"] else run["updated_at"], standing
        _KNOWN[store] = now
    return {run_id: standing for run_id, (_, standing) in now.items()}


def standing_of(store: RunStore, run: Mapping[str, Any]) -> Standing:
    """The standing of one run, read from the store."""
    first, last = store.first_points(run["id"]), store.last_points(run["id"])
    return Standing(first, last, _milestones(store, run, first, last))


def _milestones(store: RunStore, run: Mapping[str, Any], first: Values, last: Values) -> Milestones:
    """Those of the whole run, out of its answers and few of its numbers.

    Of the numbers those are read that stand at a step with answers, where the damage begins, and at the end of the run.
    Where a collapse goes back beyond that end, more is read.
    """
    run_id, until = str(run["id"]), int(run["last_step"])
    method, budget = METHODS.get(run["method"]), run["config"].get("guard", {}).get("retain_budget")
    aims = method is not None and method.towards_stand_ins
    prompts, events = store.prompts(run_id), store.events(run_id)
    course = course_of({}, prompts, store.answers(run_id), events, budget, aims)
    point = budgeted(last)
    names = [name for name in (FORGET_LOSS, point, STAND_IN_KL) if name in last]
    wanted = {0, *course.answered}
    if (before := first.get(point, 0.0)) > 0:
        wanted.update(store.above_since(run_id, point, most_undamaged(before, course.budget)))
    length = TAIL
    while True:
        end = max(0, until - length) if before >= 0 else 0
        looked_up = store.series_at(run_id, names, {step for step in wanted if step < end} | {end})
        numbers = _joined(looked_up, store.series(run_id, names, end))
        found = milestones(replace(course, numbers=numbers), until)
        if not end or found.collapsed is None or found.collapsed > end:
            return found
        length *= 8


def _joined(earlier: Mapping[str, Series], later: Mapping[str, Series]) -> dict[str, Series]:
    joined: dict[str, Series] = {}
    for name in {**earlier, **later}:
        (steps, values), (more_steps, more_values) = (of.get(name, ((), ())) for of in (earlier, later))
        joined[name] = [*steps, *more_steps], [*values, *more_values]
    return joined
