"""The protocol `Session`: the scripted session that the worker is tested with keeps what the real one keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tiny
from tests.scripted import Script
from unlearn_core.running.protocols import Answer, Session, StepRecord

PROMPTS = ["What is zorblatt?", "The cat"]


@dataclass
class Kind:
    """How to open a session of one kind, and the lines that it reported meanwhile."""

    open: Callable[[], Session]
    reports: list[str]


@pytest.fixture(params=["scripted", "engine"])
def kind(request: pytest.FixtureRequest, tiny: Tiny, one_thread: None) -> Kind:
    reports: list[str] = []

    def report(stage: str, detail: str = "") -> None:
        reports.append(stage)

    if request.param == "scripted":
        return Kind(lambda: Script().open({"label": "a"}, report), reports)
    from unlearn_core.training.engine import Unlearner

    return Kind(lambda: Unlearner(tiny.config(), report), reports)


@pytest.fixture
def begun(kind: Kind) -> Session:
    """A session whose baseline is measured."""
    session = kind.open()
    session.read_texts()
    session.measure_baseline()
    return session


def values(record: StepRecord) -> dict[str, float]:
    """What a step measured, but for how long it took."""
    return {name: value for name, value in record.values.items() if name != "step_seconds"}


def texts(answers: Any) -> list[str]:
    return [answer.response.text for answer in answers]


def test_the_baseline_is_step_0_and_every_step_counts_one_further(kind: Kind) -> None:
    session = kind.open()
    assert kind.reports[0] == "loading the model"
    session.read_texts()
    baseline = session.measure_baseline()
    assert (baseline.step, baseline.applied, baseline.verdict, session.step_number) == (0, True, None, 0)
    assert {"forget_loss", "retain_loss"} <= set(baseline.values)
    for number in (1, 2, 3):
        record = session.step()
        assert (record.step, record.applied, record.verdict, session.step_number) == (number, True, None, number)
        assert record.values and all(math.isfinite(value) for value in record.values.values())
        verdict = session.judge(record.values, [("a song", "a song")])
        assert verdict is None or (verdict.rule and verdict.sentence)


def test_levels_and_provenance_can_be_stored_as_json(begun: Session) -> None:
    levels = json.loads(json.dumps(dict(begun.levels())))
    assert {"forget_level", "forget_level_source", "uniform_loss", "retain_budget"} <= set(levels)
    provenance = begun.provenance()
    assert provenance["device"] and json.loads(json.dumps(provenance)) == provenance


def test_there_is_one_answer_to_each_prompt_and_the_baseline_s_never_change(begun: Session) -> None:
    before = begun.baseline_answers(PROMPTS)
    assert len(before) == 2 and begun.baseline_answers(PROMPTS[1:])[0].response.text == before[1].response.text
    for _ in range(2):
        begun.step()
    now = begun.answers(PROMPTS)
    answer: Answer
    for answer, first in zip(now, before, strict=True):
        assert answer.baseline == first.response.text == first.baseline
        assert isinstance(answer.response.text, str) and answer.response.tokens >= 0 and answer.response.seconds >= 0
        assert 0 <= answer.target_probability <= 1
        assert math.isfinite(answer.surprise) and answer.typical_share is None
    assert texts(begun.baseline_answers(PROMPTS)) == texts(before) and list(begun.answers([])) == []


def test_a_prompt_that_is_too_long_is_refused_in_a_sentence_and_the_session_goes_on(begun: Session) -> None:
    for ask in (begun.answers, begun.baseline_answers):
        with pytest.raises(ValueError, match=r"\.$"):
            ask(["a" * 50_000])
    assert len(begun.answers(PROMPTS)) == 2 and begun.step().step == 1


@pytest.mark.slow
def test_a_session_that_is_restored_takes_the_same_steps(kind: Kind, begun: Session, tmp_path: Path) -> None:
    for _ in range(2):
        begun.step()
    begun.save(tmp_path / "step-000002", whole=True)
    assert (tmp_path / "step-000002" / "state.json").is_file()
    following, answers = [values(begun.step()) for _ in range(2)], texts(begun.answers(PROMPTS))
    again = kind.open()
    again.restore(tmp_path / "step-000002")
    assert again.step_number == 2
    assert [values(again.step()) for _ in range(2)] == following and texts(again.answers(PROMPTS)) == answers
    assert dict(again.levels()) == dict(begun.levels())


def test_an_adapter_alone_answers_but_is_not_gone_on_from(kind: Kind, begun: Session, tmp_path: Path) -> None:
    begun.step()
    begun.save(tmp_path / "step-000001", whole=False)
    assert not (tmp_path / "step-000001" / "state.json").exists()
    saved = texts(begun.answers_at(tmp_path / "step-000001", PROMPTS))
    begun.step()
    own, step = texts(begun.answers(PROMPTS)), begun.step_number
    assert texts(begun.answers_at(tmp_path / "step-000001", PROMPTS)) == saved, "wherever the session stands"
    assert (texts(begun.answers(PROMPTS)), begun.step_number) == (own, step), "and it stands where it stood"
    with pytest.raises(ValueError, match="step-000009"):
        begun.answers_at(tmp_path / "step-000009", PROMPTS)
    with pytest.raises(ValueError, match=r"\.$"):
        kind.open().restore(tmp_path / "step-000001")


def test_a_plain_run_has_the_model_of_another_plain_run(begun: Session) -> None:
    assert begun.same_base_model("") and begun.same_base_model("grad_ascent")
