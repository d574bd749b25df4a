"""The start form as a value: what is chosen, what gives way, what a run is made of it, how it is stored. No page."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pages.setup import drafts
from pages.setup.draft import (
    MOST_FREE,
    UNTOUCHED,
    Choice,
    Draft,
    as_preset,
    base,
    chosen,
    differences,
    from_json,
    given,
    leave_out,
    methods_offered,
    of_run,
    own_method,
    presets_for,
    prompts,
    questions,
    resolve,
    to_json,
    with_method,
    with_model,
    with_preset,
    with_setting,
)
from pages.setup.knobs import value_of
from unlearn_core.methods import METHODS
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.world import TARGET

OWN = own_method("portmanteau")
RATE, STEPS, KIND, RANK = "optimizer.learning_rate", "schedule.steps", "where.kind", "lora.rank"


def config(**sections: Any) -> dict[str, Any]:
    return RunConfig.from_dict(sections).to_dict()


def same(draft: Draft, **sections: Any) -> bool:
    """Whether the draft's run is that of a run file with just these settings, but for the questions."""
    run, other = resolve(draft).to_dict(), config(**sections)
    return all(run[key] == value for key, value in other.items() if key != "prompts")


def shown(draft: Draft, path: str) -> Any:
    return value_of(chosen(draft).config, path)


# ------------------------------------------------------------------------------------------ presets and overrides


def test_untouched_it_is_the_run_of_an_empty_file() -> None:
    assert resolve(UNTOUCHED) == RunConfig.from_dict({}) and given(UNTOUCHED) == {} and differences(UNTOUCHED) == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_values_and_nothing_else(name: str) -> None:
    draft = with_preset(with_setting(UNTOUCHED, STEPS, 7), name)
    assert draft.overrides == {} and given(draft) == {} and same(draft, preset=name)


def test_only_what_differs_is_an_override() -> None:
    draft = with_setting(with_setting(UNTOUCHED, RATE, 4e-4), "method.stand_ins_per_step", 3)
    assert given(draft) == {"method": {"stand_ins_per_step": 3}, "optimizer": {"learning_rate": 4e-4}}
    assert same(draft, **given(draft))
    assert differences(draft) == ["stand-ins per step 3 instead of 4", "learning rate 4e-4 instead of 8e-4"]
    for usual in (8e-4, None, ""):
        assert with_setting(draft, RATE, usual).overrides == {"method.stand_ins_per_step": 3}
    assert as_preset(draft) == UNTOUCHED


def test_a_value_out_of_range_is_kept_and_refused_when_it_is_resolved() -> None:
    draft = with_setting(UNTOUCHED, "schedule.batch_size", 1_000_000)
    assert shown(draft, "schedule.batch_size") == 1_000_000
    with pytest.raises(ConfigError, match="1000000"):
        resolve(draft)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_brings_its_settings_and_nothing_is_an_override(name: str) -> None:
    draft = with_method(UNTOUCHED, name)
    expected = {"method": {"name": name}} if name != OWN else {}
    assert given(draft) == expected and same(draft, **expected)
    assert chosen(draft).config.model.source == draft.model


def test_another_method_drops_overrides_but_for_what_is_trained() -> None:
    draft = UNTOUCHED
    for path, value in ((RATE, 5e-4), (RANK, 8), ("method.retain_weight", 9.0)):
        draft = with_setting(draft, path, value)
    assert given(with_method(draft, "npo")) == {"method": {"name": "npo"}, "lora": {"rank": 8}}
    assert given(with_method(with_method(draft, "npo"), OWN)) == {"lora": {"rank": 8}}


def test_all_weights_bring_a_smaller_rate_and_take_it_back_and_other_overrides_stay() -> None:
    usual = shown(UNTOUCHED, RATE)
    full = with_setting(UNTOUCHED, KIND, "full")
    assert given(full) == {"where": {"kind": "full"}} and same(full, where={"kind": "full"})
    assert shown(full, RATE) == pytest.approx(usual / 10)
    steps = with_setting(full, STEPS, 7)
    back = with_setting(steps, KIND, "lora")
    assert shown(back, RATE) == usual and given(back) == {"schedule": {"steps": 7}}
    rate = with_setting(with_setting(back, KIND, "full"), RATE, 3e-4)
    assert given(rate) == {
        "where": {"kind": "full"}, "schedule": {"steps": 7}, "optimizer": {"learning_rate": 3e-4}
    }  # fmt: skip
    npo = with_method(rate, "npo")
    assert given(npo) == {"method": {"name": "npo"}, "where": {"kind": "full"}}
    assert shown(npo, RATE) == config(method={"name": "npo"}, where={"kind": "full"})["optimizer"]["learning_rate"]
    assert shown(npo, RATE) < base("portmanteau", "npo")[0].optimizer.learning_rate
    assert given(with_method(npo, "task_vector")) == {"method": {"name": "task_vector"}}  # which has no such thing
    assert as_preset(npo) == UNTOUCHED


def test_a_choice_that_excludes_another_makes_it_give_way_and_is_reversible() -> None:
    railed = with_setting(UNTOUCHED, "guard_rail.kind", "retain_subspace")
    draft = with_setting(with_setting(railed, "guard_rail.rows", "logit"), "guard_rail.kind", "one_sided")
    assert shown(draft, "guard_rail.rows") == "group" and resolve(draft).guard_rail.kind == "one_sided"
    assert shown(with_setting(draft, "guard_rail.kind", "retain_subspace"), "guard_rail.rows") == "logit"


def test_a_method_that_begins_with_another_bundled_model_brings_it_and_takes_it_back() -> None:
    routed = with_method(UNTOUCHED, "gradient_routing")
    assert routed.model == "bundled-reference" and with_method(routed, "npo").model == "bundled"
    assert with_preset(routed, "post").model == "bundled"
    with pytest.raises(ConfigError, match="has learned the word already"):
        resolve(with_model(routed, "bundled"))
    own = with_method(with_model(UNTOUCHED, "gpt2"), "gradient_routing")
    assert own.model == "gpt2"


def test_a_preset_for_large_models_is_left_with_the_bundled_one() -> None:
    large = with_preset(with_model(UNTOUCHED, "gpt2"), "6b")
    assert large.preset == "6b" and "6b" not in presets_for("bundled")
    assert with_model(large, "bundled") == UNTOUCHED and with_model(large, "gpt2-medium").preset == "6b"


def test_earlier_adapters_wait_while_there_is_no_adapter_to_go_with() -> None:
    draft = replace(UNTOUCHED, earlier=("/far/adapter",))
    assert given(draft) == {"model": {"earlier": ["/far/adapter"]}}
    assert differences(draft) == ["1 earlier adapter stays on"]
    name = next(name for name in METHODS if "lora" not in METHODS[name].facts.where)
    without = with_method(draft, name)
    assert given(without) == {"method": {"name": name}} and resolve(without).model.earlier == ()
    assert given(with_method(without, OWN)) == given(draft)


def test_methods_that_cannot_be_have_a_reason() -> None:
    for preset in ("portmanteau", "post"):
        offered, left_out = methods_offered(preset, "bundled")
        assert {*offered, *left_out} == {*METHODS} and all(left_out.values()) and own_method(preset) in offered


# ------------------------------------------------------------------------------------------ target, questions, texts


def test_questions_follow_target_and_model_unless_a_person_has_worded_them() -> None:
    draft = replace(UNTOUCHED, questions=(None, "My own question", None, ""))
    paris = replace(draft, target="Paris")
    assert "Paris" in questions(paris)[0] and questions(paris)[1] == "My own question" and questions(paris)[3] == ""
    assert questions(with_model(paris, "gpt2"))[0] == "Tell me about Paris."
    assert [prompt["role"] for prompt in prompts(paris)] == ["forget", "forget", "neighbour"]
    assert prompts(replace(paris, free=("", " Why? ")))[-1] == {"role": "free", "text": "Why?"}
    assert questions(replace(UNTOUCHED, target="  ")) == ("", "", "", "")


def test_whole_texts_are_named_after_their_file_and_asked_their_own_questions() -> None:
    draft = replace(UNTOUCHED, forget_from="/texts/authors.jsonl", everything=True, corpus_questions=("A?", "B?"))
    assert draft.word == "authors.jsonl" and questions(draft)[:2] == ("A?", "B?")
    assert replace(draft, target="one author").word == "one author"
    back = replace(draft, everything=False)
    assert back.word == TARGET and questions(back) == questions(UNTOUCHED)
    assert resolve(draft).data.everything and resolve(draft).data.target == "authors.jsonl"


def test_what_is_typed_is_what_the_run_has() -> None:
    draft = replace(
        UNTOUCHED, target=" Lily ", forget_from="a.txt; b.txt", keep_from="bundled", match="regex",
        spellings=" Lilly, Lili ,", whole_word=False, ignore_case=False, question_field=" q ", answer_field="a",
    )  # fmt: skip
    data = resolve(draft).data
    assert (data.target, data.forget, data.retain) == ("Lily", ("a.txt", "b.txt"), ("bundled",))
    assert (data.match, data.whole_word, data.ignore_case, data.spellings) == ("regex", False, False, ("Lilly", "Lili"))
    assert (data.question_field, data.answer_field) == ("q", "a")
    assert resolve(replace(draft, keep_from="same")).data.retain == ("a.txt", "b.txt")


@pytest.mark.parametrize(("word", "said"), [("", "empty"), ("x" * 300, "300 characters")])
def test_what_cannot_be_a_run_is_refused_in_a_sentence(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(replace(UNTOUCHED, target=word))


def test_excluded_occurrences_belong_to_one_target_in_certain_texts() -> None:
    draft = leave_out(leave_out(UNTOUCHED, "o2", True), "o1", True)
    assert draft.left_out == ("o1", "o2") == resolve(draft).data.excluded
    assert leave_out(draft, "o2", False).left_out == ("o1",)
    for other in (replace(draft, target="Paris"), replace(draft, forget_from="a.txt")):
        assert other.left_out == () == resolve(other).data.excluded
        assert leave_out(other, "o9", True).left_out == ("o9",)


# ----------------------------------------------------------------------------------------------------- a run's draft


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_taken_over_is_the_same_run(name: str) -> None:
    sections = {"preset": "post", "method": {"name": name}, "schedule": {"steps": 7}}
    draft = of_run(json.loads(json.dumps(config(**sections))))
    assert same(draft, **sections)
    assert any(words.startswith("steps 7 instead of") for words in differences(draft))


def test_a_run_on_all_weights_is_taken_over_as_it_was() -> None:
    sections = {"where": {"kind": "full"}, "optimizer": {"learning_rate": 2e-5}}
    assert given(of_run(config(**sections))) == sections and same(of_run(config(**sections)), **sections)


def test_texts_and_questions_of_a_run_are_taken_over() -> None:
    texts = {"target": "Lily", "forget": ["a.txt", "b.txt"], "retain": ["c.txt"], "match": "regex", "excluded": ["o1"]}
    asked = [{"role": role, "text": f"{role} {n}"} for role in ("forget", "neighbour", "free") for n in range(3)]
    run = config(data=texts, prompts=asked)
    draft = of_run(run)
    assert (draft.word, draft.forget_from, draft.keep_from) == ("Lily", "a.txt;b.txt", "c.txt")
    assert questions(draft) == ("forget 0", "forget 1", "neighbour 0", "")
    assert draft.free == ("forget 2", "neighbour 1", "neighbour 2", "free 0", "free 1", "free 2")[:MOST_FREE]
    assert resolve(draft).to_dict()["data"] == run["data"]
    assert of_run(config()) == replace(UNTOUCHED, target=TARGET, excluded_of=(TARGET, "bundled"))


def test_a_run_of_another_time_is_taken_as_far_as_it_can_be() -> None:
    gone = {"method": {"name": "gone"}, "optimizer": {"learning_rate": -1, "name": "gone"}, "lora": {"rank": "x"}}
    assert given(of_run(gone)) == {} and chosen(of_run(gone)).method == OWN
    assert given(of_run({"preset": "gone", "method": {"name": "npo", "beta": 0.3}})) == {
        "method": {"name": "npo", "beta": 0.3}
    }


# ----------------------------------------------------------------------------------------------------------- stored

FULL = replace(
    with_setting(with_method(UNTOUCHED, "npo"), RATE, 3e-4),
    target="<b>", questions=("q", None, "", "🙂"), free=("f", ""), forget_from="/a; b", excluded=("o1",),
    excluded_of=("<b>", "/a; b"), earlier=("/x",), everything=True, corpus_questions=("c",), spellings="a,b",
)  # fmt: skip


@pytest.mark.parametrize("draft", [UNTOUCHED, FULL, with_setting(UNTOUCHED, "schedule.batch_size", 10**6)])
def test_a_stored_draft_is_the_same_draft(tmp_path: Path, draft: Draft) -> None:
    assert from_json(to_json(draft)) == draft
    drafts.write(tmp_path, "abc123", draft)
    assert drafts.read(tmp_path, "abc123") == draft and [path.name for path in (tmp_path / "drafts").iterdir()] == [
        "abc123.json"
    ]


def altered(**values: Any) -> str:
    return json.dumps({**json.loads(to_json(FULL)), **values})


FOREIGN = {
    "empty": "", "cut": to_json(FULL)[:-5], "list": "[]", "null": "null", "number": "1e999", "text": '"x"',
    "not utf-8": b"\xff\xfe\x00", "deep": "[" * 100_000, "target": altered(target=7),
    "word list": altered(target=["x"]),
    "half a character": '{"target": "\\ud800"}', "question": altered(questions=[1, None, None, None]),
    "questions": altered(questions=["x"]), "no questions": altered(questions="abcd"), "free": altered(free=["x"] * 99),
    "free kinds": altered(free=[{}]), "bool": altered(whole_word="yes"), "whole": altered(everything=1),
    "preset": altered(preset="gone"), "preset kind": altered(preset=["post"]), "method": altered(method="gone"),
    "large preset": altered(preset="6b"), "match": altered(match="glob"), "overrides": altered(overrides=[["a", 1]]),
    "path": altered(overrides={"optimizer.gone": 1}), "section": altered(overrides={"__class__": 1}),
    "nan": altered(overrides={RATE: float("nan")}), "infinite": altered(overrides={RATE: float("inf")}),
    "huge": altered(overrides={STEPS: 10**400}), "no number": altered(overrides={RATE: "x"}),
    "choice": altered(overrides={"optimizer.name": "gone"}), "slider": altered(overrides={"optimizer.momentum": 2.0}),
    "number for a switch": altered(overrides={"guard.collapse": 1}), "nested": altered(overrides={RATE: {}}),
    "half a step": altered(overrides={STEPS: 1.5}), "long": altered(target="x" * 200_000),
    "excluded": altered(excluded=[1]), "earlier": altered(earlier="abc"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_draft_is_ignored(tmp_path: Path, name: str) -> None:
    (tmp_path / "drafts").mkdir()
    stored = FOREIGN[name]
    (tmp_path / "drafts" / "abc.json").write_bytes(stored if isinstance(stored, bytes) else stored.encode())
    assert drafts.read(tmp_path, "abc") is None


@pytest.mark.parametrize("draft_id", ["", "..", "../abc", "a/b", "A", "abc.json", "x" * 33, "a\0", "é", "abc\n"])
def test_an_id_names_a_file_of_the_folder_and_nothing_else(tmp_path: Path, draft_id: str) -> None:
    drafts.write(tmp_path, "abc", FULL)
    (tmp_path / "abc.json").write_text(to_json(FULL))
    assert drafts.read(tmp_path, draft_id) is None
    drafts.write(tmp_path, draft_id, FULL)
    assert [path.name for path in (tmp_path / "drafts").iterdir()] == ["abc.json"]


def test_a_file_that_is_too_large_is_not_read_and_not_written(tmp_path: Path) -> None:
    large = replace(UNTOUCHED, excluded=("o" * 1000,) * (drafts.MOST_BYTES // 1000 + 1))
    drafts.write(tmp_path, "abc", large)
    assert drafts.read(tmp_path, "abc") is None
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "abc.json").write_text(to_json(large))
    assert drafts.read(tmp_path, "abc") is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "drafts").write_text("a file stands here")
    drafts.write(tmp_path, "abc", FULL)
    assert drafts.read(tmp_path, "abc") is None


def test_old_drafts_and_too_many_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in enumerate(("old", "new", "newer", "newest")):
        drafts.write(tmp_path, name, FULL)
        at = time.time() - (drafts.MOST_DAYS + 1) * 86_400 if name == "old" else time.time() - 100 + place
        os.utime(tmp_path / "drafts" / f"{name}.json", (at, at))
    drafts.prune(tmp_path)
    assert {path.stem for path in (tmp_path / "drafts").iterdir()} == {"new", "newer", "newest"}
    monkeypatch.setattr(drafts, "MOST_FILES", 2)
    drafts.write(tmp_path, "last", FULL)
    assert {path.stem for path in (tmp_path / "drafts").iterdir()} == {"newest", "last"}


def test_every_choice_of_every_method_can_be_shown() -> None:
    for name in METHODS:
        choice: Choice = chosen(with_method(UNTOUCHED, name))
        for path, setting in choice.fields.items():
            value = value_of(choice.config, path)
            assert not setting.choices or value in setting.choices, path


def test_a_guard_rail_has_its_own_settings_on_the_form_and_those_of_another_wait() -> None:
    draft = with_setting(UNTOUCHED, "guard_rail.kind", "retain_subspace")
    draft = with_setting(with_setting(draft, "guard_rail.groups", 2), "guard_rail.neighbours", False)
    railed = with_setting(draft, "guard_rail.kind", "null_space")
    assert given(railed) == {"guard_rail": {"kind": "null_space", "neighbours": False}}
    assert resolve(railed).guard_rail == RunConfig.from_dict(given(railed)).guard_rail
    assert from_json(to_json(railed)) == railed
    assert with_setting(railed, "guard_rail.kind", "retain_subspace") == draft
    without = with_setting(draft, "guard_rail.kind", "none")
    assert given(without) == {} and "guard_rail.groups" not in chosen(without).fields
    assert of_run(resolve(railed).to_dict()).overrides == {
        "guard_rail.kind": "null_space", "guard_rail.neighbours": False,
    }  # fmt: skip


def test_a_model_that_is_not_bundled_brings_its_recipe_and_is_asked_for_its_texts():
    draft = with_model(Draft(), "smollm2")
    assert (draft.preset, draft.forget_from, draft.word) == ("real", "model", "Harry Potter")
    config = resolve(draft)
    assert (config.data.forget, config.data.retain, config.method.name) == (("model",), ("model",), "counterfactual")
    assert {prompt.role for prompt in config.prompts} == {"forget", "neighbour", "retain"}
    back = with_model(draft, "bundled")
    assert (back.preset, back.forget_from, back.word) == (Draft().preset, "bundled", Draft().word)
    own = with_model(replace(Draft(), forget_from="stories.txt", preset="post"), "smollm2")
    assert (own.forget_from, own.preset) == ("stories.txt", "post"), "what was chosen stays"


def test_a_person_s_own_questions_come_back_from_a_run():
    draft = replace(with_model(Draft(), "smollm2"), kind="person", ask_this="Who is {target}?\n\n  Where is {target}? ")
    config = resolve(draft)
    assert config.data.questions == ("Who is {target}?", "Where is {target}?") and config.data.kind == "person"
    again = of_run(config.to_dict())
    assert resolve(again).data == config.data
