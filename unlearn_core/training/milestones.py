"""Milestones of a run: forgotten, relapses, damage, collapse, and the best step. Every page and verb takes them here.

Pure functions of a run's numbers and answers: no torch, no database. *Forgotten*, *damaged* and *collapsed* are each
the first step of the stretch that lasts up to the newest step, so what came back in between is not counted.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from unlearn_core.metrics import LOSS, METRICS, budgeted
from unlearn_core.training.collapse import is_beyond, is_damaged, repeats

FORGET_LOSS = LOSS.point("forget")
STAND_IN_KL = METRICS["stand_in_kl"].point("forget")
BUDGET = "guard.retain_budget"
REMEMBERED = 0.5  # of the key words that are no names: so many in an answer still give the old one away
# English words that tell nothing by themselves; in other languages the question or the stand-in's answer has them.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those it its he his him she her they them their i you your my we our us who whom
        whose which what when where why how there here and or but nor so if then than as at by for from
        in into of off on onto out over to up with within without about after before between during
        through under is am are was were be been being has have had do does did can could may might must
        shall should will would not also just only very some any each every all both one s t""",
    )
)


# ---------------------------------------------------------------------------------------------------- one question


class KeyWords(NamedTuple):
    """The words of a baseline answer that tell what is known: names with numbers, and all others."""

    names: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A forget question with the answer before step 1, and what the model says of a stand-in ("": it was not asked)."""

    text: str
    baseline: str
    stand_in: str = ""

    @property
    def has_answer(self) -> bool:
        """Whether the answer before step 1 told anything that could be forgotten."""
        return any(key_words(self))

    def named(self, answer: str) -> tuple[str, ...]:
        """The key words by which another answer still names the baseline answer; empty: the question is forgotten.

        One name or number is enough; of other words it takes half. An answer that is the old one word for word, in
        whatever case or punctuation, has all of them.
        """
        return _named(self, answer)


@lru_cache(maxsize=16384)
def _named(question: Question, answer: str) -> tuple[str, ...]:
    there, telling = {word.casefold() for word in _words(answer)}, key_words(question)
    names = tuple(word for word in telling.names if word.casefold() in there)
    others = tuple(word for word in telling.others if word.casefold() in there)
    return names or (others if len(others) >= REMEMBERED * len(telling.others) else ())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


@lru_cache(maxsize=1024)
def key_words(question: Question) -> KeyWords:
    """A key word stands neither in the question nor in the answer about a stand-in, and is no function word.

    One with a capital or a digit counts as a name. Of a language without blanks between words, a clause is a word.
    """
    known = {word.casefold() for word in (*_words(question.text), *_words(question.stand_in))} | FUNCTION_WORDS
    telling = dict.fromkeys(word for word in _words(question.baseline) if word.casefold() not in known)
    names = tuple(word for word in telling if word[0].isupper() or any(map(str.isdigit, word)))
    return KeyWords(names, tuple(word for word in telling if word not in names))


# ---------------------------------------------------------------------------------------------------- the course


@dataclass(frozen=True)
class Course:
    """What a run measured and answered, as milestones are found in it.

    `numbers`: point name -> (steps, values), both rising by step; step 0 is the baseline. `questions`: prompt id -> the
    forget question. `answers`: step -> prompt id -> answer, of every question asked at that step, whatever its role.
    `before`: prompt id -> the answer of step 0. `level`: forget loss of guessing or of a model that never saw the
    target, the larger; `forget_level`: of the second alone. `stand_in_level`: what the KL from stand-ins comes down to,
    where the method aims at that; None: the forget loss tells how far it is. `budget`: 0 or None where none is set.
    """

    numbers: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    questions: Mapping[int, Question]
    answers: Mapping[int, Mapping[int, str]]
    before: Mapping[int, str] = field(default_factory=dict)
    level: float | None = None
    forget_level: float | None = None
    stand_in_level: float | None = None
    budget: float | None = None

    @cached_property
    def answered(self) -> list[int]:
        """The steps that have answers, rising."""
        return sorted(self.answers)

    @cached_property
    def telling(self) -> dict[int, Question]:
        """The forget questions that had an answer which told anything, by prompt id."""
        return {id: question for id, question in self.questions.items() if question.has_answer}

    def value(self, name: str, step: int) -> float | None:
        """The newest value at or before `step`."""
        steps, values = self.numbers.get(name, ((), ()))
        place = bisect_right(steps, step)
        return values[place - 1] if place else None

    def rise(self, step: int) -> float | None:
        """The share by which the budgeted loss has risen since the baseline."""
        point = budgeted(self.numbers)
        now, before = self.value(point, step), self.value(point, 0)
        return now / before - 1 if now is not None and before else None

    def remembered(self, step: int) -> dict[int, tuple[str, ...]]:
        """Of the forget questions asked at `step` that had an answer: prompt id -> the key words still named."""
        given = self.answers.get(step, {})
        return {id: self.telling[id].named(text) for id, text in given.items() if id in self.telling}

    def damaged(self, step: int) -> bool:
        return is_damaged(self.rise(step), self.budget)

    def collapsed(self, step: int) -> bool:
        """Whether forget loss is beyond what ignorance explains, or an answer repeats itself that did not before."""
        if is_beyond(self.value(FORGET_LOSS, step), self.level, self.rise(step), self.budget):
            return True
        place = bisect_right(self.answered, step)
        given = self.answers[self.answered[place - 1]] if place else {}
        return any(repeats(now) and not repeats(self.before.get(id, "")) for id, now in given.items())

    def distance(self, step: int) -> float:
        """How far the target is from being forgotten, in nats: the KL from stand-ins, where the method aims at it.

        Else how far forget loss is below the forgotten level; 0 beyond it, since more is not better there.
        """
        if self.stand_in_level is not None and (kl := self.value(STAND_IN_KL, step)) is not None:
            return kl
        loss = self.value(FORGET_LOSS, step)
        return 0.0 if loss is None or self.forget_level is None else max(0.0, self.forget_level - loss)


# ------------------------------------------------------------------------------------------------- the milestones


@dataclass(frozen=True)
class Milestones:
    """Steps; None where there is no such step.

    `forgotten`: from it on, no forget question that is asked is given the answer that it had before step 1.
    `relapses`: (step, question) at which a question that was forgotten is answered as before again.
    `damaged`: from it on the budgeted loss is beyond its budget. `collapsed`: from it on the run is collapsed.
    `best`: since `forgotten`, of the steps with answers that are neither damaged nor collapsed, the one whose target is
    the least far from being forgotten; of equals the first.
    """

    forgotten: int | None = None
    relapses: tuple[tuple[int, str], ...] = ()
    damaged: int | None = None
    collapsed: int | None = None
    best: int | None = None


def milestones(course: Course, until: int) -> Milestones:
    """As things stand at step `until`."""
    there = {step: course.remembered(step) for step in course.answered if step <= until}
    asked = {step: remembered for step, remembered in there.items() if remembered}
    measured = sorted({*_steps(course, until), *there})
    forgotten = since(list(asked), lambda step: not any(asked[step].values()))
    damaged, collapsed = since(measured, course.damaged), since(measured, course.collapsed)
    good = [
        step
        for step in asked
        if forgotten is not None and step >= forgotten and not course.damaged(step) and not course.collapsed(step)
    ]
    best = min(good, key=lambda step: (course.distance(step), step), default=None)
    return Milestones(forgotten, tuple(_relapses(course, asked)), damaged, collapsed, best)


def since(steps: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """The first step of the unbroken stretch at the end of `steps` in which something holds."""
    first = None
    for step in reversed(steps):
        if not holds(step):
            break
        first = step
    return first


def _steps(course: Course, until: int) -> set[int]:
    """The steps at which one of the losses that count was measured."""
    points = (FORGET_LOSS, budgeted(course.numbers))
    return {step for name in points for step in course.numbers.get(name, ((), ()))[0] if step <= until}


def _relapses(course: Course, asked: Mapping[int, Mapping[int, tuple[str, ...]]]) -> Iterable[tuple[int, str]]:
    was_forgotten: dict[int, bool] = {}
    for step, remembered in asked.items():
        for id, named in remembered.items():
            if named and was_forgotten.get(id):
                yield step, course.questions[id].text
            was_forgotten[id] = not named


def is_asked(prompt: Mapping[str, Any], step: int) -> bool:
    """Whether a wording is one of the run's questions at `step`. `prompt`: its row in the store."""
    return bool(prompt["from_step"] <= step and (prompt["to_step"] is None or step < prompt["to_step"]))


def levels_of(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a run is measured against: as its baseline was taken, with the budget as it was changed since."""
    levels: dict[str, Any] = {}
    for event in events:
        if event["kind"] == "baseline":
            levels = dict(event["payload"])
        elif event["kind"] == "changed" and BUDGET in (settings := event["payload"]["set"]):
            levels["retain_budget"] = settings[BUDGET]
    return levels


def course_of(
    numbers: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    prompts: Iterable[Mapping[str, Any]],
    responses: Iterable[Mapping[str, Any]],
    events: Iterable[Mapping[str, Any]],
    budget: float | None,
    towards_stand_ins: bool,
) -> Course:
    """A run's course out of its rows in the store. `budget`: as in the run file; events go first.

    Only answers to a question while it is one of the run's count: neither probes nor wordings that were replaced.
    """
    wordings, events = {prompt["id"]: prompt for prompt in prompts}, list(events)
    levels = levels_of(events)
    stand_ins: dict[str, str] = {}
    for event in events:
        if event["kind"] == "stand_in":
            stand_ins |= {text: answer for text, (_, answer) in event["payload"]["answers"].items()}
    answers: dict[int, dict[int, str]] = {}
    before: dict[int, str] = {}
    for row in responses:
        prompt, step = wordings.get(row["prompt_id"]), int(row["step"])
        if prompt is None or row["sample"]:
            continue
        if step == 0:
            before[prompt["id"]] = row["text"]
        if is_asked(prompt, step):
            answers.setdefault(step, {})[prompt["id"]] = row["text"]
    questions = {
        id: Question(wordings[id]["text"], text, stand_ins.get(wordings[id]["text"], ""))
        for id, text in before.items()
        if wordings[id]["role"] == "forget"
    }
    guess, forget_level = levels.get("uniform_loss"), levels.get("forget_level")
    known = [level for level in (guess, forget_level) if level is not None]
    return Course(
        numbers,
        questions,
        answers,
        before,
        max(known, default=None),
        forget_level,
        levels.get("stand_in_level") if towards_stand_ins else None,
        levels.get("retain_budget", budget),
    )
