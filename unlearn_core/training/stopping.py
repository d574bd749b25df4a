"""Rules that pause a run before it does damage. Each says why in one sentence; each can be switched off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unlearn_core.metrics import METRICS, budgeted, budgeted_set
from unlearn_core.settings.sections import GuardSettings
from unlearn_core.training.collapse import BEYOND, is_beyond, repeats

STAND_IN_KL = METRICS["stand_in_kl"].point("forget")
UNKNOWN = 1.5  # times as far from stand-ins as one of them is from the others: below, the target is one of them
SETTLED_STEPS = 8  # for which KL from stand-ins is at its level: the first time may be one measurement's luck
PLATEAU_STEPS, PLATEAU = 12, 0.95  # steps in which KL from stand-ins has not fallen below this share of its lowest


@dataclass(frozen=True)
class Verdict:
    """Which rule asks for a pause, and why, for a person."""

    rule: str
    sentence: str


@dataclass
class Guard:
    """Judges each step against the baseline.

    A rule that has spoken stays silent until its condition has been false once: a person who resumes means to go on.
    """

    settings: GuardSettings
    baseline: Mapping[str, float]
    forget_level: float
    level_source: str
    uniform_loss: float
    stand_in_level: float | None = None  # KL from stand-ins of one stand-in more; None: judged by the forget loss
    spoken: set[str] = field(default_factory=set)
    course: list[tuple[int, float]] = field(default_factory=list)  # (step, KL from stand-ins), as it was measured

    @property
    def collapse_level(self) -> float:
        """Forget loss that together with damage is a collapse: beyond both guessing and the forgotten level."""
        return BEYOND * max(self.uniform_loss, self.forget_level)

    def judge(
        self, values: Mapping[str, float], answers: Sequence[tuple[str, str]] = (), step: int = 0
    ) -> Verdict | None:
        """The first rule that asks for a pause. `answers`: (baseline answer, answer now) of every prompt, if asked."""
        if STAND_IN_KL in values:
            self.course.append((step, values[STAND_IN_KL]))
        sentences = {"collapse": self._collapse(values, answers), **self._levels(values)}
        verdict = next(
            (Verdict(rule, text) for rule, text in sentences.items() if text and rule not in self.spoken), None
        )
        # A rule that could not be judged in this step (no answers, no measurement) keeps its state.
        self.spoken &= {rule for rule, text in sentences.items() if text != ""}
        if verdict:
            self.spoken.add(verdict.rule)
        return verdict

    def not_finite(self, values: Mapping[str, float]) -> Verdict | None:
        """Asked before the optimizer's step: a loss or gradient norm that is not a number."""
        for name, value in values.items():
            if not math.isfinite(value):
                return Verdict(
                    "not_finite",
                    f"The {name.replace('_', ' ')} is not a number any more ({value}); the step was not taken. "
                    "Lower the learning rate, or step back to an earlier checkpoint.",
                )
        return None

    def _levels(self, values: Mapping[str, float]) -> dict[str, str | None]:
        """Per rule: a sentence = asks for a pause, "" = does not, None = cannot be judged in this step."""
        sentences: dict[str, str | None] = {"retain_budget": None, "forgotten_enough": None}
        budget = self.settings.retain_budget
        if (rise := self._rise(values)) is not None:
            spent = f"{budgeted_set(self.baseline).capitalize()} loss is up {rise:.1%}; its budget is {budget:.0%}."
            sentences["retain_budget"] = spent if budget and rise > budget else ""
        if self.stand_in_level is not None:
            if STAND_IN_KL in values:
                sentences["forgotten_enough"] = self._as_a_stand_in() if self.settings.forgotten_enough else ""
        elif "forget_loss" in values:
            enough = self.settings.forgotten_enough and values["forget_loss"] >= self.forget_level
            sentences["forgotten_enough"] = (
                f"Forgotten enough: forget loss {values['forget_loss']:.2f} has reached {self.forget_level:.2f}, "
                f"that of {self.level_source}."
                if enough
                else ""
            )
        return sentences

    def _rise(self, values: Mapping[str, float]) -> float | None:
        """The share by which the budgeted loss has risen; None where it was not measured in this step."""
        point = budgeted(self.baseline)
        before = self.baseline.get(point)
        return values[point] / before - 1 if before and point in values else None

    def _as_a_stand_in(self) -> str:
        """Whether the target is treated as an invented name is, or comes no nearer to that any more."""
        level = self.stand_in_level
        assert level is not None
        step, now = self.course[-1]
        aim = f"{level:.3f}, as far as one invented name is from others"
        if self.baseline.get(STAND_IN_KL, math.inf) < UNKNOWN * level:
            return f"This model did not know the target to begin with: it treats it as a word it never met ({aim})."
        settled = list(itertools.takewhile(lambda point: point[1] <= level, reversed(self.course)))
        if settled and step - settled[-1][0] >= SETTLED_STEPS:
            return (
                f"Forgotten: for {step - settled[-1][0]} steps the model has treated the target as a word it never met "
                f"(KL {now:.3f}; {aim})."
            )
        before = [value for at, value in self.course if at <= step - PLATEAU_STEPS]
        lately = [value for at, value in self.course if at > step - PLATEAU_STEPS]
        if before and min(lately) > PLATEAU * min(before):
            return f"It comes no nearer: for {PLATEAU_STEPS} steps, KL from stand-ins has stayed at {now:.3f} ({aim})."
        return ""

    def _collapse(self, values: Mapping[str, float], answers: Sequence[tuple[str, str]]) -> str | None:
        if not self.settings.collapse:
            return ""
        guess, level = (self.uniform_loss, "a model that guesses every token"), (self.forget_level, self.level_source)
        limit, whose = max(guess, level)
        rise = self._rise(values)
        if is_beyond(values.get("forget_loss"), limit, rise, self.settings.retain_budget):
            cost = "" if rise is None else f", and {budgeted_set(self.baseline)} loss has changed by {rise:+.1%}"
            return f"Collapse: forget loss {values['forget_loss']:.2f} is beyond {limit:.2f}, that of {whose}{cost}."
        if not answers:
            return None if "forget_loss" not in values or "collapse" in self.spoken else ""
        broken = [now for before, now in answers if repeats(now) and not repeats(before)]
        return f"Collapse: an answer repeats itself (“{broken[0].strip()[:40]}…”)." if broken else ""
