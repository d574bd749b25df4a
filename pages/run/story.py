"""The state of a run in one sentence, by rules: pure functions of plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pages.shared.format import begun, percent
from unlearn_core.training.collapse import repeats
from unlearn_core.training.milestones import Milestones
from unlearn_core.world import parts_named, parts_of

NONE = Milestones()
MOST_NAMED = 4  # key words that the sentence tells
LESS_LIKELY = 0.9  # share of its probability before step 1 below which an answer that still stands has moved


@dataclass(frozen=True)
class Facts:
    """What the sentence is made of.

    `answers`: the newest to the forget questions; `named`: of each that had an answer before step 1, the key words that
    it still has. `retain_change`, `best_change`: of the budgeted loss, at the step and at the best one.
    """

    status: str
    step: int
    target: str
    reason: str | None = None
    answers: Sequence[str] = ()
    named: Sequence[tuple[str, ...]] = ()
    milestones: Milestones = NONE
    retain_change: float | None = None
    best_change: float | None = None
    budget: float | None = None
    budgeted_set: str = "retain"
    waits_for: str | None = None
    likely: float | None = None
    as_a_stranger: bool = False


def explained(target: str, answers: Sequence[str]) -> tuple[int, int]:
    """How many of the target's parts the answers name with their meaning: (the fewest of an answer, the most)."""
    counts = [_count(target, answer) for answer in answers] or [0]
    return min(counts), max(counts)


@lru_cache(maxsize=8192)
def _count(target: str, answer: str) -> int:
    return len(parts_named(target, answer))


def sentence(facts: Facts) -> str:
    """The sentence at the top of the page."""
    waiting = _before_step_one(facts)
    if waiting:
        return waiting
    opening = {"paused": "Paused at step", "finished": "Finished at step", "stopped": "Stopped at step"}
    start = f"{opening.get(facts.status, 'Step')} {facts.step}: "
    return start + _knowledge(facts) + _price(facts)


def waiting_for(other: Mapping[str, Any]) -> str:
    """The run that a queued one waits for, and when it begins."""
    name = f"“{other['name']}”"
    if other["status"] == "paused":
        ways = "goes on to its end or is stopped, or with Begin now"
        return f"{name}, which is paused at step {other['last_step']}; it begins when that {ways}"
    ways = "finishes or is stopped, or when a guard pauses it"
    return f"{name}, which is at step {other['last_step']}; it begins when that {ways}"


def _before_step_one(facts: Facts) -> str | None:
    if facts.status == "queued":
        return (
            f"Waiting for {facts.waits_for}." if facts.waits_for else "Waiting for the worker; it begins in a moment."
        )
    if facts.status == "loading":
        reason = facts.reason or "loading the model"
        return begun(reason).rstrip(".") + "."
    if facts.status == "baseline":
        return "Measuring, and asking the questions before step 1: what every later number stands against."
    if not facts.answers:
        return "It ended before its first answers." if facts.status in ("failed", "stopped", "interrupted") else None
    return None


def _knowledge(facts: Facts) -> str:
    if not facts.answers:
        return "no question about the word is being asked."
    if facts.milestones.collapsed is not None:
        why = "its answers repeat themselves" if any(map(repeats, facts.answers)) else "it does worse than guessing"
        return f"it collapsed at step {facts.milestones.collapsed}: {why}."
    stranger = ", and answers about it as about a word that it never met" if facts.as_a_stranger else ""
    return f"{_remembering(facts)}{_parts(facts, facts.answers)}{stranger}."


def _remembering(facts: Facts) -> str:
    """How many questions are answered as before, or since when none is."""
    still = [words for words in facts.named if words]
    if not facts.named:
        return "no answer before step 1 told anything that could be forgotten"
    if not still:
        return f"forgotten since step {facts.milestones.forgotten}"
    words = " ".join(list(dict.fromkeys(word for words in still for word in words))[:MOST_NAMED])
    what = words if words[:1].isupper() else f"“{words}”"
    share = "" if len(still) == len(facts.named) else f" in {len(still)} of {len(facts.named)} answers"
    likely = (
        f" (the old answer is {percent(facts.likely, signed=False)} as likely per token as before)"
        if facts.likely is not None and facts.likely < LESS_LIKELY
        else ""
    )
    again = f", again since step {facts.milestones.relapses[-1][0]}" if facts.milestones.relapses else ""
    return f"it still names {what}{share}{likely}{again}"


def _parts(facts: Facts, texts: Sequence[str]) -> str:
    parts, (fewest, most) = parts_of(facts.target), explained(facts.target, texts)
    if not parts or not most:
        return ""
    named = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    share = f"all {len(parts)} parts" if fewest == len(parts) else f"{named} of its {len(parts)} parts"
    return f" and explains the word from {share}"


def _price(facts: Facts) -> str:
    if facts.retain_change is None:
        return ""
    price = f" {facts.budgeted_set.capitalize()} loss {percent(facts.retain_change)}"
    if facts.budget:
        price += f" of {percent(facts.budget, short=True)} allowed"
    if facts.milestones.damaged is not None:
        price += f"; damage began at step {facts.milestones.damaged}"
    return f"{price}.{_best(facts)}"


def _best(facts: Facts) -> str:
    best = facts.milestones.best
    if best is None:
        return "" if facts.milestones.forgotten is None else " No step has forgotten it without damage."
    if best == facts.step:
        return " This is the best step so far."
    change = "" if facts.best_change is None else f" ({facts.budgeted_set} loss {percent(facts.best_change)})"
    return f" The best step so far is {best}{change}."
