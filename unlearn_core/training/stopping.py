"""Rules that pause a run before it does damage. Each says why in one sentence; each can be switched off."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unlearn_core.metrics import budgeted
from unlearn_core.settings.sections import GuardSettings

REPEATED_SHARE = 0.5  # of an answer being one thing again and again: that is no answer any more
SAME_LETTER_SHARE = 0.6  # of an answer being one character (a line of dashes in a table is less)
FEWEST_WORDS = 8
BEYOND = 1.05  # times the level that counts as damage: a model like the reference hovers around that level
FEWEST_CHARACTERS = 40
FEWEST_LETTERS = 12
AGAIN_AND_AGAIN = re.compile(r"(.{1,60}?)\1{4,}")


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
    spoken: set[str] = field(default_factory=set)

    @property
    def collapse_level(self) -> float:
        """Forget loss beyond which it is damage: worse than guessing, and than a model that never saw the target.

        The second can be the larger: such a model may be sure of another answer.
        """
        return BEYOND * max(self.uniform_loss, self.forget_level)

    def judge(self, values: Mapping[str, float], answers: Sequence[tuple[str, str]] = ()) -> Verdict | None:
        """The first rule that asks for a pause. `answers`: (baseline answer, answer now) of every prompt, if asked."""
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
        held = budgeted(self.baseline)
        if held in values:
            rise = values[held] / self.baseline[held] - 1
            over = budget and rise > budget
            sentences["retain_budget"] = (
                f"Retain loss on text never trained on is up {rise:.1%}; the budget is {budget:.0%}." if over else ""
            )
        if "forget_loss" in values:
            enough = self.settings.forgotten_enough and values["forget_loss"] >= self.forget_level
            sentences["forgotten_enough"] = (
                f"Forgotten enough: forget loss {values['forget_loss']:.2f} has reached {self.forget_level:.2f}, "
                f"that of {self.level_source}."
                if enough
                else ""
            )
        return sentences

    def _collapse(self, values: Mapping[str, float], answers: Sequence[tuple[str, str]]) -> str | None:
        if not self.settings.collapse:
            return ""
        if values.get("forget_loss", 0.0) > self.collapse_level:
            guess, level = (
                (self.uniform_loss, "a model that guesses every token"),
                (self.forget_level, self.level_source),
            )
            limit, whose = max(guess, level)
            return f"Collapse: forget loss {values['forget_loss']:.2f} is far beyond {limit:.2f}, that of {whose}."
        if not answers:
            return None if "forget_loss" not in values or "collapse" in self.spoken else ""
        broken = [now for before, now in answers if repeats(now) and not repeats(before)]
        return f"Collapse: an answer repeats itself (“{broken[0].strip()[:40]}…”)." if broken else ""


def repeats(text: str) -> bool:
    """True where half of a longer answer is one word, one piece of text on end, or one and the same character."""
    words = text.split()
    if len(words) >= FEWEST_WORDS and Counter(words).most_common(1)[0][1] >= REPEATED_SHARE * len(words):
        return True
    letters = "".join(words)
    if len(letters) >= FEWEST_LETTERS and Counter(letters).most_common(1)[0][1] >= SAME_LETTER_SHARE * len(letters):
        return True
    spaced = " ".join(words)  # code is indented by many blanks, and means it
    enough = max(FEWEST_CHARACTERS, REPEATED_SHARE * len(spaced))
    return any(len(match.group()) >= enough for match in AGAIN_AND_AGAIN.finditer(spaced))
