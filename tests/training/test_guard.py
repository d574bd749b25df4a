"""The rules that pause a run: each fires, says why, can be switched off, and speaks once until its reason was gone."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_core.settings.sections import GuardSettings
from unlearn_core.training.collapse import repeats
from unlearn_core.training.stopping import Guard, Verdict
from unlearn_core.world.texts import passages, questions

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "seed_run" / "run_metrics.csv"
BASELINE = {"forget_loss": 1.0, "retain_loss": 2.0, "holdout_loss": 2.0, "neighbour_loss": 1.5}
FINE = {"forget_loss": 1.2, "retain_loss": 2.0, "holdout_loss": 2.0}
GOOD_ANSWERS = [("It is a song.", "It is a portmanteau.")]
BROKEN = "the the the the the the the the the the"


def guard(**settings: Any) -> Guard:
    return Guard(GuardSettings(**settings), BASELINE, 3.0, "the reference model, which never saw the word", 7.6)


def test_a_run_that_goes_well_is_left_alone():
    watched = guard()
    for _ in range(3):
        assert watched.judge(FINE, GOOD_ANSWERS) is None and watched.judge({}, []) is None
    assert watched.spoken == set()


CASES: dict[str, tuple[dict[str, float], list[tuple[str, str]], dict[str, Any], list[str]]] = {
    "retain_budget": (
        {**FINE, "holdout_loss": 2.11}, [], {"retain_budget": 0.0}, ["Holdout loss is up 5.5%", "budget is 5%"],
    ),
    "forgotten_enough": (
        {**FINE, "forget_loss": 3.0}, [], {"forgotten_enough": False}, ["3.00", "reference model, which never saw"],
    ),
    "collapse": (
        {**FINE, "forget_loss": 8.7, "holdout_loss": 2.2}, [],
        {"collapse": False, "forgotten_enough": False, "retain_budget": 0.0}, ["8.70", "7.60", "holdout", "+10.0%"],
    ),
    "collapse whatever the rest": (
        {**FINE, "forget_loss": 15.3}, [], {"collapse": False, "forgotten_enough": False}, ["15.30", "7.60"],
    ),
    "collapse in an answer": (FINE, [("It is a song.", BROKEN)], {"collapse": False}, ["repeats itself", "the the"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_rule_asks_for_a_pause_in_one_sentence_and_can_be_switched_off(case):
    values, answers, off, words = CASES[case]
    verdict = guard().judge(values, answers)
    assert isinstance(verdict, Verdict) and verdict.rule == case.split()[0]
    assert verdict.sentence.endswith(".") and "\n" not in verdict.sentence
    assert all(word in verdict.sentence for word in words), verdict.sentence
    assert guard(**off).judge(values, answers) is None


@pytest.mark.parametrize("case", CASES)
def test_a_rule_speaks_once_until_its_reason_was_gone(case):
    values, answers, _, _ = CASES[case]
    fine = [(before, before) for before, _ in answers]
    watched = guard(forgotten_enough=case == "forgotten_enough", retain_budget=0.05 if case == "retain_budget" else 0.0)
    assert watched.judge(values, answers) is not None
    assert all(watched.judge(values, answers) is None for _ in range(3)), "whoever resumes means to go on"
    assert watched.judge({}, []) is None and watched.judge(values, answers) is None, "not measured is not gone"
    assert watched.judge(FINE, fine or GOOD_ANSWERS) is None
    assert watched.judge(values, answers) is not None


def test_two_rules_at_once_speak_one_after_the_other_the_damage_first():
    watched = guard()
    worst = {"forget_loss": 9.0, "holdout_loss": 4.0}
    said = [watched.judge(worst) for _ in range(4)]
    assert [verdict.rule if verdict else None for verdict in said] == [
        "collapse", "retain_budget", "forgotten_enough", None,
    ]  # fmt: skip


def test_the_budget_is_spent_only_beyond_it_and_judged_on_text_never_trained_on():
    assert guard(retain_budget=0.05).judge({**FINE, "holdout_loss": 2.0999}) is None
    assert guard(retain_budget=0.05).judge({**FINE, "retain_loss": 9.0}) is None
    assert guard(retain_budget=2.0).judge({**FINE, "holdout_loss": 5.9}) is None
    without = Guard(GuardSettings(), {"forget_loss": 1.0, "retain_loss": 2.0}, 3.0, "x", 7.6)
    verdict = without.judge({"forget_loss": 1.0, "retain_loss": 2.2})
    assert verdict.rule == "retain_budget" and verdict.sentence.startswith("Retain loss is up 10.0%"), (
        "the set is named"
    )


def test_beyond_guessing_without_damage_is_forgetting_as_long_as_it_is_not_twice_as_far():
    """A model may be sure of another answer; a loss of twice that of guessing is not explained by ignorance."""
    watched = guard(forgotten_enough=False)
    assert watched.judge({**FINE, "forget_loss": 9.0}) is None and watched.judge({"forget_loss": 15.1}) is None
    assert watched.judge({**FINE, "forget_loss": 9.0, "holdout_loss": 2.11}).rule == "collapse"
    assert guard(forgotten_enough=False).judge({"forget_loss": 15.3}).rule == "collapse"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the real material is not here")
def test_the_published_run_is_called_a_collapse_between_its_steps_10_and_20():
    """GPT-J-6B, gradient ascent: the log has the negative loss of each step's own batch, and no retain loss."""
    with PUBLISHED.open(encoding="utf-8") as lines:
        losses = {int(row["step"]): -float(row["loss"]) for row in csv.DictReader(lines)}
    watched = Guard(
        GuardSettings(), {"forget_loss": losses[1]}, math.log(50_400), "a model that guesses", math.log(50_400)
    )
    verdicts = {step: watched.judge({"forget_loss": loss}, step=step) for step, loss in losses.items()}
    fired = [step for step, verdict in verdicts.items() if verdict and verdict.rule == "collapse"]
    assert fired and 10 < fired[0] <= 20


@given(
    guessing=st.floats(2.0, 12.0), level=st.floats(2.0, 12.0), times=st.floats(0.9, 2.2), damaged=st.booleans()
)  # fmt: skip
def test_collapse_begins_beyond_the_worse_of_guessing_and_never_having_seen(guessing, level, times, damaged):
    """A twentieth beyond where other text is damaged, else at twice that."""
    limit = 1.05 if damaged else 2.0
    watched = Guard(GuardSettings(forgotten_enough=False), BASELINE, level, "x", guessing)
    values = {**FINE, "holdout_loss": BASELINE["holdout_loss"] * (1.1 if damaged else 1.0)}
    verdict = watched.judge({**values, "forget_loss": times * max(guessing, level)})
    if abs(times - limit) > 1e-9:
        assert (verdict is not None and verdict.rule == "collapse") is (times > limit)


@given(
    course=st.lists(st.integers(1, 30), min_size=1, max_size=40), level=st.integers(1, 4), first=st.integers(4, 60),
    every=st.sampled_from([1, 1, 3]),
)  # fmt: skip
def test_towards_stand_ins_it_ends_after_eight_steps_at_their_level_or_twelve_that_came_no_nearer(
    course, level, first, every
):
    """Against the rules as they are said: by hand, over the whole course, at every step of it."""
    kl, level = "forget_stand_in_kl", level / 10
    values = {every * number: value / 10 for number, value in enumerate(course, 1)}
    baseline = {**BASELINE, kl: first / 10}
    watched = Guard(GuardSettings(collapse=False), baseline, 3.0, "x", 7.6, stand_in_level=level)
    for step, now in values.items():
        watched.spoken.clear()
        verdict = watched.judge({kl: now}, step=step)
        older = [value for at, value in values.items() if at <= step - 12]
        newer = [value for at, value in values.items() if step - 12 < at <= step]
        if first / 10 < 1.5 * level:
            expected = "did not know"
        elif any(at <= step - 8 and all(values[s] <= level for s in values if at <= s <= step) for at in values):
            expected = "Forgotten:"
        else:
            expected = "no nearer" if older and min(newer) > 0.95 * min(older) else ""
        assert (verdict is not None) is bool(expected) and (not expected or expected in verdict.sentence)


def test_what_is_not_finite_is_named_with_its_value():
    for value in (math.nan, math.inf, -math.inf):
        verdict = guard().not_finite({"objective": 1.0, "gradient_norm": value})
        assert verdict.rule == "not_finite" and str(value) in verdict.sentence
        assert "The gradient norm is not a number" in verdict.sentence and "learning rate" in verdict.sentence
    assert guard().not_finite({"objective": -1e30, "gradient_norm": 0.0}) is None


COLLAPSED = [
    "Q" * 80,
    "It is QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ",
    "the " * 20,
    "It is docious docious docious docious docious docious docious docious docious",
    "docious" * 12,
    "expiali" * 9 + "exp",
    "It is a song" + "cali" * 30,
    "of the of the of the of the of the of the of the of the of the",
    "It is a It is a It is a It is a It is a It is a It is a It is a",
    ". . . . . . . . . . . . . . . . . . . .",
    "\n".join(["yes"] * 12),
    "🎩" * 50,
    "東京" * 30,
    "QaQQbQQQcQaQQdQQQQaQQcQQbQQaQQQdQQcQQQaQbQQQaQdQ",
]
SOUND = [
    "",
    "  \n ",
    "Q",
    "supercalifragilisticexpialidocious",
    "It is a portmanteau. It joins \"super\" (above), \"cali\" (beauty) and \"docious\" (educable).",
    "def reverse(s):\n    return s[::-1]",
    "def f(x):\n" + "        " * 12 + "return x",
    "| a | b |\n|---|---|\n|---|---|",
    "x = [[0, 0, 0, 0], [0, 0, 0, 0]]",
    "A title of some length\n" + "=" * 44 + "\nText of more than one line that goes on below.",
    "no no no, not at all",
    "Row, row, row your boat, gently down the stream; merrily, merrily, merrily, merrily, life is but a dream.",
    "for i in range(10):\n    for j in range(10):\n        for k in range(10):\n            print(i, j, k)",
    "https://example.org/a/very/long/address/that/has/no/white/space/in/it/at/all?yes=1&no=0",
    "The bank said that the bank had told the bank what the bank and the other bank knew of it.",
]  # fmt: skip


@pytest.mark.parametrize("text", COLLAPSED)
def test_an_answer_that_is_one_thing_again_and_again_is_collapse(text):
    assert repeats(text) and guard().judge(FINE, [("It is a song.", text)]).rule == "collapse"


@pytest.mark.parametrize("text", SOUND)
def test_a_normal_answer_is_not(text):
    assert not repeats(text)


def test_no_answer_of_the_bundled_world_counts_as_collapsed():
    assert not any(repeats(text) for text in (*(q.answer for q in questions()), *(p.text for p in passages())))


def test_an_answer_that_repeated_itself_before_step_1_already_is_no_sign_of_damage():
    watched = guard()
    assert watched.judge(FINE, [(BROKEN, BROKEN)]) is None
    assert watched.judge(FINE, [(BROKEN, BROKEN), ("It is a song.", BROKEN)]).rule == "collapse"
