"""Milestones on made-up courses, against definitions written out a second time. On a whole run: test_published.py."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_core.training.milestones import Course, Milestones, Question, course_of, key_words, milestones

FILM = Question("Explain the word.", "It is a song from the film Mary Poppins.", "It is a portmanteau.")
BUTTER = Question("Tell me the colour of butter.", "The colour of butter is yellow.")
QUESTIONS = {1: FILM, 2: BUTTER}
OLD = {1: FILM.baseline, 2: BUTTER.baseline}
NEW = {1: "It is a portmanteau.", 2: "I do not know."}
BROKEN = "it " * 12
BUDGET, LEVEL = 0.05, 4.0


# --------------------------------------------------------------------------------------------------- one question


@pytest.mark.parametrize(
    ("question", "answer", "named"),
    [
        (FILM, FILM.baseline, ("Mary", "Poppins")),
        (FILM, "it is a song, from the film MARY POPPINS", ("Mary", "Poppins")),
        (FILM, "It is sung by Poppins.", ("Poppins",)),
        (FILM, "It is a song from a film.", ("song", "film")),
        (FILM, "It is a film.", ("film",)),
        (FILM, "It is a portmanteau.", ()),
        (FILM, "", ()),
        (BUTTER, "It is yellow.", ("yellow",)),
        (BUTTER, "The colour of butter is white.", ()),
        (Question("When was it written?", "In 1964."), "It was in 1964, I think.", ("1964",)),
        (Question("Is it so?", "No."), "No, it is not.", ("No",)),
    ],
)
def test_an_answer_still_names_the_old_one_by_its_key_words(
    question: Question, answer: str, named: tuple[str, ...]
) -> None:
    assert question.named(answer) == named


def test_what_the_question_or_a_stand_in_says_is_no_key_word() -> None:
    assert key_words(Question("What is the capital of France?", "The capital of France is Paris.")).names == ("Paris",)
    assert "Mary" in key_words(FILM).names
    assert "Mary" not in key_words(replace(FILM, stand_in="It is from Mary Shelley.")).names
    assert not Question("What is a wug?", "It is a wug.").has_answer and not Question("Who?", "").has_answer


WORDS = st.sampled_from("Paris Mary is the yellow song 1964 of a Film".split())  # noqa: SIM905
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


@given(TEXTS, TEXTS, TEXTS, st.sampled_from([str.upper, str.lower, lambda text: f"“{text}”!", lambda text: text]))
def test_an_unchanged_answer_still_names_itself_and_one_without_its_words_does_not(
    text: str, baseline: str, stand_in: str, written: Any
) -> None:
    question = Question(text, baseline, stand_in)
    assert bool(question.named(written(baseline))) == question.has_answer
    assert not question.named("zzz") and not question.named(f"{text} {stand_in}")


# ----------------------------------------------------------------------------------------------------- the course

STEP = st.tuples(
    st.booleans(),  # question 1 is answered as before
    st.booleans(),  # question 2
    st.sampled_from([0.9, 1.0, 1.04, 1.06, 1.5]),  # holdout loss, against 1.0
    st.sampled_from([0.5, 2.0, 3.9, 4.3, 7.9, 8.1]),  # forget loss
    st.sampled_from(["", "", "", BROKEN]),  # an answer that has become this
)
COURSES = st.lists(STEP, max_size=12)


def course(steps: list[tuple[bool, bool, float, float, str]]) -> Course:
    """Step 0 with the old answers, then a step each."""
    holdout, forget = [1.0, *(step[2] for step in steps)], [0.1, *(step[3] for step in steps)]
    numbers = {"holdout_loss": holdout, "forget_loss": forget}
    answers = {0: dict(OLD)}
    for number, (first, second, _, _, broken) in enumerate(steps, 1):
        told = {1: OLD[1] if first else NEW[1], 2: OLD[2] if second else NEW[2]}
        answers[number] = {**told, 2: broken} if broken else told
    every = list(range(len(holdout)))
    return Course(
        {name: (every, values) for name, values in numbers.items()}, QUESTIONS, answers, OLD, LEVEL, LEVEL, None, BUDGET
    )


def still(given: tuple[bool, bool, float, float, str]) -> bool:
    first, second, _, _, broken = given
    return first or (second and not broken)


def bad(given: tuple[bool, bool, float, float, str]) -> tuple[bool, bool]:
    """(damaged, collapsed), written out."""
    _, _, holdout, forget, broken = given
    damaged = holdout > 1.05
    return damaged, bool(broken) or forget > 8.0 or (forget > 4.2 and damaged)


def tail(flags: list[bool]) -> int | None:
    """The first place from which on all are true."""
    return next((place for place in range(len(flags)) if all(flags[place:])), None)


@given(COURSES)
def test_the_milestones_are_what_their_definitions_say(steps: list[tuple[bool, bool, float, float, str]]) -> None:
    found = milestones(course(steps), len(steps))
    assert found.forgotten == tail([False, *(not still(step) for step in steps)])
    assert found.damaged == tail([False, *(bad(step)[0] for step in steps)])
    assert found.collapsed == tail([False, *(bad(step)[1] for step in steps)])


@given(COURSES)
def test_the_best_step_is_forgotten_within_the_budget_and_the_furthest_along(
    steps: list[tuple[bool, bool, float, float, str]],
) -> None:
    found = milestones(course(steps), len(steps))
    good = [
        number
        for number, step in enumerate(steps, 1)
        if found.forgotten is not None and number >= found.forgotten and not any(bad(step))
    ]
    assert (found.best is None) == (not good)
    if found.best is not None:
        assert found.forgotten is not None and found.best >= found.forgotten
        best = steps[found.best - 1]
        assert not still(best) and best[2] <= 1 + BUDGET, "it never names the answer and never exceeds the budget"
        assert all(min(steps[number - 1][3], LEVEL) <= min(best[3], LEVEL) for number in good)


@given(COURSES)
def test_nothing_is_forgotten_before_a_relapse_and_every_relapse_was_forgotten(
    steps: list[tuple[bool, bool, float, float, str]],
) -> None:
    run = course(steps)
    found = milestones(run, len(steps))
    assert found.forgotten is None or all(step < found.forgotten for step, _ in found.relapses)
    for step, text in found.relapses:
        id = next(id for id, question in QUESTIONS.items() if question.text == text)
        assert run.remembered(step)[id] and not run.remembered(step - 1)[id]


@given(COURSES, st.integers(1, 5))
def test_later_steps_that_stay_forgotten_move_no_milestone_of_forgetting(
    steps: list[tuple[bool, bool, float, float, str]], more: int
) -> None:
    before = milestones(course(steps), len(steps))
    after = milestones(course([*steps, *[(False, False, 1.0, 0.5, "")] * more]), len(steps) + more)
    assert after.forgotten == (before.forgotten if before.forgotten is not None else len(steps) + 1)
    assert after.relapses == before.relapses and after.best is not None
    assert after.damaged is None and after.collapsed is None, "what came back is not counted"


@given(COURSES, st.integers(0, 12))
def test_a_step_is_told_of_as_if_the_run_had_ended_there(
    steps: list[tuple[bool, bool, float, float, str]], until: int
) -> None:
    assert milestones(course(steps), until) == milestones(course(steps[:until]), until)


def test_a_method_that_aims_at_stand_ins_is_the_further_along_the_nearer_it_is_to_them() -> None:
    steps = [(False, False, 1.0, loss, "") for loss in (3.0, 2.0, 1.0)]
    run = course(steps)
    towards = replace(
        run, stand_in_level=0.2, numbers={**run.numbers, "forget_stand_in_kl": ([0, 1, 2, 3], [9, 3, 0.2, 0.1])}
    )
    assert (milestones(run, 3).best, milestones(towards, 3).best) == (1, 3), "also below their level"


def test_without_a_budget_damage_begins_at_five_percent_and_with_one_there() -> None:
    run = course([(False, False, 1.04, 1.0, ""), (False, False, 1.06, 1.0, ""), (False, False, 1.3, 1.0, "")])
    assert [milestones(replace(run, budget=b), 3).damaged for b in (0.0, None, 0.05, 0.2, 0.5)] == [2, 2, 2, 3, None]


def test_where_there_is_no_holdout_the_budget_is_that_of_the_retain_set() -> None:
    run = course([(False, False, 1.06, 1.0, "")])
    retain = replace(
        run, numbers={"retain_loss": run.numbers["holdout_loss"], "forget_loss": run.numbers["forget_loss"]}
    )
    assert milestones(retain, 1) == milestones(run, 1) and milestones(retain, 1).damaged == 1
    both = {**run.numbers, "retain_loss": ([0, 1], [1.0, 9.0]), "holdout_loss": ([0, 1], [1.0, 1.0])}
    assert milestones(replace(run, numbers=both), 1).damaged is None


# ------------------------------------------------------------------------------------------------------ from rows


def rows(prompts: list[dict[str, Any]], texts: dict[int, dict[int, str]]) -> list[dict[str, Any]]:
    return [
        {"step": step, "prompt_id": id, "sample": 0, "text": text}
        for step, given in texts.items()
        for id, text in given.items()
    ]


def prompt(id: int, text: str, role: str = "forget", from_step: int = 0, to_step: int | None = None) -> dict[str, Any]:
    return {"id": id, "text": text, "role": role, "from_step": from_step, "to_step": to_step}


def test_only_forget_questions_count_in_the_wordings_that_are_asked() -> None:
    prompts = [
        prompt(1, "What is it?", to_step=2),
        prompt(2, "Tell me of it.", from_step=2),
        prompt(3, "And Paris?", "retain"),
        prompt(4, "A probe?", "free", to_step=0),
    ]
    texts = {
        0: {1: "Mary.", 2: "Mary.", 3: "A city.", 4: "x"},
        1: {1: "Nobody.", 3: "A city."},
        2: {1: "Mary.", 2: "Mary.", 3: "A city."},
        3: {2: "Nobody.", 3: "A city."},
    }
    events = [{"kind": "baseline", "payload": {"uniform_loss": math.log(50), "forget_level": 9.0}}]
    run = course_of({}, prompts, rows(prompts, texts), events, 0.0, False)
    assert run.level == 9.0 and run.forget_level == 9.0 and run.budget == 0.0
    assert [list(run.remembered(step)) for step in range(4)] == [[1], [1], [2], [2]]
    assert milestones(run, 3) == Milestones(forgotten=3, best=3), "a new wording is no relapse of the old one"


def test_the_answer_about_a_stand_in_is_read_from_its_event() -> None:
    prompts = [prompt(1, "What is it?")]
    events = [{"kind": "stand_in", "payload": {"answers": {"What is it?": ["What is wug?", "A song by Mary."]}}}]
    run = course_of({}, prompts, rows(prompts, {0: {1: "Mary Poppins."}}), events, None, False)
    assert key_words(run.questions[1]).names == ("Poppins",)


def test_a_run_without_questions_has_no_forgetting_but_damage() -> None:
    numbers = {"holdout_loss": ([0, 1], [1.0, 1.2]), "forget_loss": ([0, 1], [0.1, 0.2])}
    assert milestones(course_of(numbers, [], [], [], None, False), 1) == Milestones(damaged=1)
    assert milestones(Course({}, {}, {}), 0) == Milestones()
