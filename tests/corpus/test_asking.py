"""A model's answers as texts: what it is asked, once and the same for a seed, in the cache and out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TARGET
from unlearn_core.corpus import preview
from unlearn_core.corpus.asking import answers as asking
from unlearn_core.corpus.asking import questions
from unlearn_core.corpus.preview import inspect
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import KINDS
from unlearn_core.training.engine import Unlearner

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FEW = {chat: questions.general(chat)[:40] for chat in (True, False)}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Few and short answers."""
    monkeypatch.setattr(asking, "TOKENS", 12)
    monkeypatch.setattr(questions, "general", FEW.__getitem__)


@pytest.fixture(scope="module")
def chatty(tiny, tmp_path_factory) -> Path:
    """The tiny Llama with a chat template."""
    import shutil

    folder = tmp_path_factory.mktemp("chatty") / "llama"
    shutil.copytree(tiny.root / "llama", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def settings(tiny, source: Path, method: str = "counterfactual", **data: Any) -> dict[str, Any]:
    texts = {"forget": ["model"], "retain": ["model"], "answers": 2, "window_tokens": 96, **data}
    return tiny.settings(model={"source": str(source)}, method={"name": method}, data=texts)


def opened(tiny, source: Path, cache: Path, **options: Any) -> Unlearner:
    return Unlearner(RunConfig.from_dict(settings(tiny, source, **options)), cache=cache)


def rows_of(cache: Path, kind: str) -> list[dict[str, str]]:
    (path,) = (cache / asking.FOLDER).glob(f"{kind}-*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("chat", [False, True], ids=["beginnings", "questions"])
def test_a_run_from_a_word_alone(tiny, chatty, tmp_path, chat):
    source = chatty if chat else tiny.root / "llama"
    run = opened(tiny, source, tmp_path)
    windows = run.context.windows
    assert windows.forget and windows.retain and windows.holdout
    assert all(TARGET in window.text for window in windows.forget)
    assert not any(TARGET in window.text for set_ in (windows.retain, windows.holdout) for window in set_)
    rows = rows_of(tmp_path, "forget")
    assert {row["about"] for row in rows} == {asking.TARGET, asking.STAND_IN}
    assert all(TARGET in (row["question"] if chat else row["text"]) for row in rows)
    if chat:
        encoded = run.context.tokenizer.decode(list(windows.forget[0].ids))
        assert encoded.startswith("user: ") and "assistant: " in encoded
    run.measure_baseline()
    assert run.step().values["objective"] >= 0


def test_an_answer_about_a_stand_in_is_about_the_target_when_it_is_written_down(tiny, chatty, tmp_path):
    run = opened(tiny, chatty, tmp_path)
    assert run.context.windows
    names = run.context.counterfactuals.names(2, "asked 0")
    about = [row for row in rows_of(tmp_path, "forget") if row["about"] == asking.STAND_IN]
    assert about
    assert not any(name.lower() in json.dumps(row).lower() for name in names for row in about)


def test_a_method_without_stand_ins_is_given_the_answers_about_the_target_alone(tiny, chatty, tmp_path):
    assert opened(tiny, chatty, tmp_path, method="npo").context.windows
    assert {row["about"] for row in rows_of(tmp_path, "forget")} == {asking.TARGET}


def test_answers_follow_from_the_seed_and_are_asked_for_once(tiny, chatty, tmp_path, monkeypatch):
    first = opened(tiny, chatty, tmp_path / "a").context.windows
    again = opened(tiny, chatty, tmp_path / "b").context.windows
    assert (again.forget, again.retain, again.holdout) == (first.forget, first.retain, first.holdout)
    monkeypatch.setattr(asking.Asker, "sampled", lambda *args: pytest.fail("asked again"))
    known = opened(tiny, chatty, tmp_path / "a").context.windows
    assert known.forget == first.forget
    with pytest.raises(pytest.fail.Exception):
        other = {**settings(tiny, chatty), "seed": 1}
        _ = Unlearner(RunConfig.from_dict(other), cache=tmp_path / "a").context.windows


def test_each_answer_can_be_left_out_wherever_the_cache_lies(tiny, chatty, tmp_path, monkeypatch):
    given, opened_models = settings(tiny, chatty), []
    load = preview.load_model
    monkeypatch.setattr(preview, "load_model", lambda *args, **more: opened_models.append(args) or load(*args, **more))
    facts = inspect(given, cache=tmp_path / "a")
    assert len(opened_models) == 1, "for all that it is asked"
    assert len(facts["found"]) > 2
    one = facts["found"][0]["id"]
    assert one in {each["id"] for each in inspect(given, cache=tmp_path / "b")["found"]}
    run = opened(tiny, chatty, tmp_path / "b", excluded=[one])
    assert one not in {window.occurrence for window in run.context.windows.forget}


def test_asking_is_reported_and_can_be_stopped(tiny, chatty, tmp_path):
    stages: list[str] = []

    def stop(stage: str, detail: str = "") -> None:
        stages.append(f"{stage}: {detail}")
        if "invented" in detail:
            raise RuntimeError("stopped")

    run = Unlearner(RunConfig.from_dict(settings(tiny, chatty)), stop, cache=tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        _ = run.context.windows
    assert any("about the target, 0 of" in stage for stage in stages)
    assert not list((tmp_path / asking.FOLDER).glob("*.jsonl")), "half of it is nothing"


def test_a_person_s_own_questions_are_asked_instead(tiny, chatty, tmp_path):
    own = ["Who owns {target}?", "Name a friend of {target}."]
    assert opened(tiny, chatty, tmp_path, questions=own).context.windows
    asked = {row["question"] for row in rows_of(tmp_path, "forget")}
    assert asked <= {question.replace("{target}", TARGET) for question in own} and asked


def test_a_model_that_is_not_bundled_is_asked_where_no_texts_are_given():
    config = RunConfig.from_dict({"model": {"source": "somebody/large"}, "data": {"target": "Harry Potter"}})
    assert (config.data.forget, config.data.retain, config.preset) == (("model",), ("model",), "real")
    bundled = RunConfig.from_dict({})
    assert (bundled.data.forget, bundled.preset) == (("bundled",), "portmanteau")
    with pytest.raises(ConfigError, match="data.kind"):
        RunConfig.from_dict({"data": {"kind": "fruit"}})


def test_questions_are_many_and_differ():
    texts = Path(questions.__file__).parent
    general = (texts / "general.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(general)) == len(general) >= 200
    for kind in KINDS[1:]:
        about = questions.about("Harry Potter", kind, True, ())
        assert len(set(about)) == len(about) >= 20 and all("Harry Potter" in each for each in about)


def test_names_near_are_those_that_the_target_s_answers_have_and_others_lack():
    texts = [
        "It is by J.K. Rowling, and Hogwarts is its school.", "Then J.K. Rowling wrote of Hogwarts.",
        "In London, Harry and Ron Weasley met. Ron Weasley fell.", "They met in London, with Ron Weasley.",
    ]  # fmt: skip
    others = ["He lives in London.", "She went to London."]
    assert asking.names_in(texts, others, "Harry Potter") == ["Hogwarts", "J.K. Rowling", "Ron Weasley"]


def test_an_answer_that_was_cut_ends_with_a_whole_sentence():
    assert asking.whole_sentences("He came. He saw. He con") == "He came. He saw."
    assert asking.whole_sentences("no end here") == "no end here"
