"""The state of a run in one sentence, by rules: pure functions of plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pages.shared.format import percent
from unlearn_core.training.stopping import repeats
from unlearn_core.world import parts_named, parts_of


@dataclass(frozen=True)
class Facts:
    """What the sentence is made of. `answers`: sampled step -> the answers to the questions about the target."""

    status: str
    step: int
    target: str
    reason: str | None = None
    topic: str | None = None
    answers: Mapping[int, Sequence[str]] = field(default_factory=dict)
    retain_change: float | None = None
    budget: float | None = None
    unseen: bool = False
    waits_for: str | None = None
    likely: float | None = None
    beyond_guessing: bool = False
    as_a_stranger: bool = False


def names(topic: str, answer: str) -> bool:
    """Whether an answer still speaks of the topic."""
    return topic.lower() in answer.lower()


def moment(topic: str | None, answers: Mapping[int, Sequence[str]], until: int) -> int | None:
    """The forgetting moment: the first step of the unbroken stretch up to `until` in which no answer names the topic.

    None where it is still named, or was not named before step 1 either.
    """
    steps = sorted(step for step in answers if step <= until and answers[step])
    if not topic or not steps or not any(names(topic, answer) for answer in answers[steps[0]]):
        return None
    first = None
    for step in reversed(steps):
        if any(names(topic, answer) for answer in answers[step]):
            break
        first = step
    return first


def best_step(
    topic: str | None, target: str, answers: Mapping[int, Sequence[str]], rises: Mapping[int, float]
) -> int | None:
    """The step that forgot the topic at the least damage: most parts in every answer, then the least of `rises`."""
    forgotten = [
        step
        for step, texts in answers.items()
        if texts and topic and step in rises and not any(names(topic, answer) or broken(answer) for answer in texts)
    ]
    if not topic or not any(names(topic, answer) for answer in answers.get(0, ())):
        return None
    return min(forgotten, key=lambda step: (-explained(target, answers[step])[0], rises[step], step), default=None)


def explained(target: str, answers: Sequence[str]) -> tuple[int, int]:
    """How many of the target's parts the answers name with their meaning: (the fewest of an answer, the most)."""
    counts = [_count(target, answer) for answer in answers] or [0]
    return min(counts), max(counts)


@lru_cache(maxsize=8192)
def _count(target: str, answer: str) -> int:
    return len(parts_named(target, answer))


@lru_cache(maxsize=8192)
def broken(answer: str) -> bool:
    """Whether an answer repeats itself."""
    return repeats(answer)


def sentence(facts: Facts) -> str:
    """The sentence at the top of the page."""
    waiting = _before_step_one(facts)
    if waiting:
        return waiting
    opening = {"paused": "Paused at step", "finished": "Finished at step", "stopped": "Stopped at step"}
    start = f"{opening.get(facts.status, 'Step')} {facts.step}: "
    return start + _knowledge(facts) + _price(facts)


def _before_step_one(facts: Facts) -> str | None:
    if facts.status == "queued":
        return (
            f"Waiting for {facts.waits_for}." if facts.waits_for else "Waiting for the worker; it begins in a moment."
        )
    if facts.status == "loading":
        reason = facts.reason or "loading the model"
        return reason[:1].upper() + reason[1:].rstrip(".") + "."
    if facts.status == "baseline":
        return "Measuring, and asking the questions before step 1: what every later number stands against."
    if not facts.answers:
        return "It ended before its first answers." if facts.status in ("failed", "stopped", "interrupted") else None
    return None


def _knowledge(facts: Facts) -> str:
    steps = [step for step in facts.answers if step <= facts.step]
    texts = facts.answers[max(steps)] if steps else ()
    if not texts:
        return "no question about the word is being asked."
    if facts.beyond_guessing:
        return "it has collapsed: it does worse than guessing every token."
    if any(map(broken, texts)):
        return "it has collapsed: its answers repeat themselves."
    stranger = ", and answers about it as about a word that it never met" if facts.as_a_stranger else ""
    return f"{_naming(facts, texts)}{_parts(facts, texts)}{stranger}."


def _naming(facts: Facts, texts: Sequence[str]) -> str:
    before = facts.answers.get(0, ())
    if not facts.topic:
        changed = sum(now != then for now, then in zip(texts, before, strict=False))
        likely = (
            ""
            if facts.likely is None
            else f"; the baseline answer is {percent(facts.likely, signed=False)} as likely per token as before"
        )
        return f"{changed} of {len(texts)} answers about it {'has' if changed == 1 else 'have'} changed{likely}"
    verb = ("naming", "names") if facts.topic[:1].isupper() else ("saying", "says")
    topic = facts.topic if facts.topic[:1].isupper() else f"“{facts.topic}”"
    naming = sum(names(facts.topic, answer) for answer in texts)
    if naming == len(texts):
        return f"it still {verb[1]} {topic}"
    if naming:
        return f"it {verb[1]} {topic} in {naming} of {len(texts)} answers"
    stopped = moment(facts.topic, facts.answers, facts.step)
    if stopped is None:
        return f"it does not {verb[1][:-1]} {topic}, nor did it before step 1"
    return f"it stopped {verb[0]} {topic} at step {stopped}"


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
    change = percent(facts.retain_change)
    loss = "Holdout loss" if facts.unseen else "Retain loss"
    if facts.budget:
        return f" {loss} {change}; {percent(facts.budget, short=True)} allowed."
    return f" {loss} {change} since the start."
