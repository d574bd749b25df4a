"""The run file: every default, every wrong setting answered with field, value and way out, and lossless round trips."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from unlearn_core.methods import METHODS
from unlearn_core.settings.errors import ConfigError, written
from unlearn_core.settings.knobs import knobs
from unlearn_core.settings.presets import DEFAULT_PRESET, PRESETS, default_prompts
from unlearn_core.settings.run_config import RunConfig, overlay, with_settings
from unlearn_core.settings.sections import PROMPT_CHARACTERS, RAILS, LoraSettings, rail_settings
from unlearn_core.world import SUGGESTED_TARGETS, TARGET

SECTIONS = {
    name: hint for name, hint in typing.get_type_hints(RunConfig).items() if dataclasses.is_dataclass(hint)
}  # fmt: skip
SOME_CONFIGS: list[dict[str, Any]] = [
    {},
    {"preset": "post"},
    {"name": "später · 後", "seed": 2**31 - 1},
    {"method": {"name": "npo", "beta": 0.25, "retain_weight": 0.0}},
    {"method": {"name": "grad_ascent", "ceiling": 3}},
    {"data": {"target": "Marie Curie", "forget": ["a.txt", "b.txt"], "retain": "c.txt", "neighbours": False}},
    {"prompts": [{"role": "forget", "text": "  What is {target}?  "}, {"text": "free"}]},
    {"optimizer": {"name": "sgd", "learning_rate": 1e-8, "momentum": 0.999}},
    {"guard": {"retain_budget": 0, "not_finite": False}, "guard_rail": {"kind": "none"}},
    {"data": {"target": "🎩"}, "name": 'quotes " and \\ and \t'},
    {"data": {"target": "שלום עולם"}, "prompts": [{"role": "free", "text": "line one\nline two {target} {other}"}]},
]


def flat(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def test_the_empty_file_is_the_bundled_run():
    config = RunConfig.from_dict({})
    assert config == RunConfig.from_toml("")
    assert (config.model.source, config.data.target, config.preset) == ("bundled", TARGET, DEFAULT_PRESET)
    assert config.data.forget == config.data.retain == ("bundled",)
    lora = LoraSettings()
    assert (lora.rank, lora.alpha, lora.dropout, lora.modules) == (16, 32.0, 0.1, "auto")
    assert [prompt.role for prompt in config.prompts][:2] == ["forget", "forget"]
    assert all(TARGET in prompt.text for prompt in config.prompts if prompt.role == "forget")
    assert not any(TARGET in prompt.text for prompt in config.prompts if prompt.role != "forget")


def test_a_method_keeps_the_rate_and_the_steps_of_a_preset_for_a_larger_model():
    """They were tuned on the bundled model; what the method cannot do without is laid over all the same."""
    large = RunConfig.from_dict({"preset": "6b", "method": {"name": "grad_diff"}, "model": {"source": "gpt-j"}})
    assert (large.optimizer.learning_rate, large.schedule.steps, large.lora.rank) == (5e-5, 80, 16)
    assert large.method == type(large.method)()
    dial = RunConfig.from_dict({"preset": "1b", "method": {"name": "task_vector"}, "model": {"source": "some-1b"}})
    assert dial.guard_rail.kind == "none"
    assert dial.schedule.steps == METHODS["task_vector"].facts.settings["schedule"]["steps"]
    full = RunConfig.from_dict({"preset": "6b", "where": {"kind": "full"}, "model": {"source": "gpt-j"}})
    assert full.optimizer.learning_rate == pytest.approx(large.optimizer.learning_rate / 10)
    small = RunConfig.from_dict({"preset": "post", "method": {"name": "grad_diff"}})
    assert small.optimizer.learning_rate == METHODS["grad_diff"].facts.settings["optimizer"]["learning_rate"]


@pytest.mark.parametrize("given", SOME_CONFIGS)
def test_writing_and_reading_a_config_changes_nothing(given):
    config = RunConfig.from_dict(given)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert RunConfig.from_toml(config.to_toml()) == config
    assert RunConfig.from_toml(config.to_toml()).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("target", SUGGESTED_TARGETS)
def test_every_preset_is_a_valid_run_for_every_suggested_target(name, target):
    preset = PRESETS[name]
    config = RunConfig.from_dict({"preset": name, "data": {"target": target}})
    assert config.preset == name and preset.label and preset.caption.endswith(".")
    assert any(target in prompt.text for prompt in config.prompts)
    given = {"method": preset.values["method"]} if preset.recommended else preset.values
    for path, value in _leaves(given):
        where: Any = config.to_dict()
        for key in path:
            where = where[key]
        assert where == value, path


def _leaves(values: dict[str, Any], path: tuple[str, ...] = ()):
    for key, value in values.items():
        yield from _leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def test_what_is_written_wins_over_the_preset_and_another_method_drops_its_knobs():
    below = {"method": {"name": "npo", "beta": 0.5}, "schedule": {"steps": 7}}
    assert overlay(below, {"schedule": {"batch_size": 3}})["schedule"] == {"steps": 7, "batch_size": 3}
    assert overlay(below, {"method": {"beta": 0.2}})["method"] == {"name": "npo", "beta": 0.2}
    assert overlay(below, {"method": {"name": "grad_ascent"}})["method"] == {"name": "grad_ascent"}
    assert below == {"method": {"name": "npo", "beta": 0.5}, "schedule": {"steps": 7}}


def test_another_guard_rail_drops_what_it_does_not_have_and_keeps_what_both_have():
    below = {"guard_rail": {"rows": "sample", "batches": 8, "neighbours": True}}
    assert overlay(below, {"guard_rail": {"every": 2}})["guard_rail"] == {**below["guard_rail"], "every": 2}
    kept = {"batches": 8, "neighbours": True}
    assert overlay(below, {"guard_rail": {"kind": "null_space"}})["guard_rail"] == {"kind": "null_space", **kept}
    assert overlay(below, {"guard_rail": {"kind": "none"}})["guard_rail"] == {"kind": "none"}
    whole = RunConfig.from_dict({}).to_dict()
    branch = RunConfig.from_dict(with_settings(whole, ["guard_rail.kind=one_sided", "guard_rail.every=5"]))
    assert (branch.guard_rail.kind, branch.guard_rail.groups, branch.guard_rail.every) == ("one_sided", 8, 5)
    with pytest.raises(ConfigError, match="guard_rail.every is 5 and guard_rail.kind is 'none'"):
        RunConfig.from_dict(with_settings({}, ["guard_rail.every=5", "guard_rail.kind=none"]))


def test_a_guard_rail_has_the_preset_s_settings_whatever_the_method_recommends():
    """Of a method that is recommended without one, too."""
    for method in ("grad_ascent", "potion"):
        rail = RunConfig.read({"method": {"name": method}, "guard_rail": {"kind": "retain_subspace"}}).guard_rail
        assert (rail.groups, rail.batches, rail.batch_size, rail.neighbours) == (8, 8, 2, True)
    assert RunConfig.from_dict({"method": {"name": "potion"}}).to_dict()["guard_rail"] == {"kind": "none"}


ALL_KNOBS = [(f"{section}.{fact['name']}", fact) for section, kind in SECTIONS.items() for fact in knobs(kind)]
ALL_KNOBS += [
    (f"guard_rail.{fact['name']}", {**fact, "guard_rail": kind})
    for kind in RAILS
    for fact in knobs(rail_settings(kind))
    if fact["name"] != "kind"
]
ALL_KNOBS += [
    (f"method.{fact['name']}", {**fact, "method": name}) for name, kind in METHODS.items() for fact in knobs(kind)
]
NUMBERS = [(path, fact) for path, fact in ALL_KNOBS if fact.get("low") is not None]


def refused(path: str, value: Any, fact: dict[str, Any]) -> str:
    given = flat(path, value)
    if "method" in fact:
        given["method"]["name"] = fact["method"]
    if "guard_rail" in fact:
        given["guard_rail"]["kind"] = fact["guard_rail"]
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(given)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "fact"), NUMBERS, ids=[path for path, _ in NUMBERS])
def test_a_number_out_of_range_is_refused_with_the_range(path, fact):
    assert fact["low"] <= fact["default"] <= fact["high"]
    whole = isinstance(fact["default"], int)
    for value in (fact["low"] - 1, fact["high"] + 1, *(() if whole else (float("nan"), float("inf"), -float("inf")))):
        sentence = refused(path, value if whole else float(value), fact)
        assert path in sentence and f"{fact['low']:g}" in sentence and f"{fact['high']:g}" in sentence
        assert str(value).split(".")[0] in sentence


@pytest.mark.slow
@pytest.mark.parametrize(("path", "fact"), ALL_KNOBS, ids=[path for path, _ in ALL_KNOBS])
def test_a_value_of_a_wrong_kind_is_refused_with_what_is_allowed(path, fact):
    wrong: dict[type, list[Any]] = {
        bool: [1, "yes", None, []],
        int: [1.5, "3", True, None, [1]],
        float: ["0.1", False, None, {}],
        str: [3, True, None, ["a"], {}],
        tuple: [3, [1], None, *([[]] if fact.get("filled") else [])],
    }
    allowed = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of texts"}
    for value in wrong[type(fact["default"])]:
        sentence = refused(path, value, fact)
        assert path in sentence and written(value) in sentence and allowed[type(fact["default"])] in sentence
    if fact.get("choices"):
        sentence = refused(path, "neither", fact)
        assert path in sentence and "'neither'" in sentence and all(choice in sentence for choice in fact["choices"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sed": 1}, ["sed", "Did you mean seed"]),
        ({"lora": {"ranks": 1}}, ["lora.ranks", "Did you mean lora.rank"]),
        ({"schedule": {"zzz": 1}}, ["schedule.zzz", "Known here", "steps"]),
        ({"method": {"name": "npo", "bta": 1}}, ["method.bta", "method.beta"]),
        ({"method": {"name": "grad_ascent", "beta": 1.0}}, ["method.beta", "Known here", "ceiling"]),
        ({"method": {"name": "nope"}}, ["method.name", "'nope'", *METHODS]),
        ({"method": {"name": ["npo"]}}, ["method.name", "['npo']", *METHODS]),
        ({"method": "npo"}, ["method", "'npo'", "[method]"]),
        ({"method": {"name": "ssd"}, "optimizer": {"name": "sophia"}}, ["optimizer.name", "nothing to optimize"]),
        ({"method": {"name": "ssd"}, "guard_rail": {"kind": "one_sided"}}, ["guard_rail.kind", "no gradient steps"]),
        ({"method": {"name": "ssd"}, "where": {"kind": "lora"}}, ["where.kind", "'lora'", "a fresh adapter has none"]),
        ({"method": {"name": "guard_prompt"}, "where": {"kind": "full"}}, ["where.kind", "it changes no weights"]),
        ({"guard_rail": {"kind": "none", "rows": "group"}},
         ["guard_rail.rows", "'none'", "has no settings", "retain_subspace"]),
        ({"guard_rail": {"kind": "null_space", "every": 3}}, ["guard_rail.every", "batches, batch_size", "one_sided"]),
        ({"guard_rail": {"energy": 0.9}}, ["guard_rail.energy", "'none'", "has energy: null_space"]),
        ({"guard_rail": {"kind": "retain_subspace", "row": "group"}}, ["Did you mean guard_rail.rows"]),
        ({"guard_rail": {"kind": ["none"]}}, ["guard_rail.kind", "['none']", "text"]),
        ({"guard_rail": "none"}, ["guard_rail", "'none'", "[guard_rail]"]),
        ({"preset": "nope"}, ["preset", "'nope'", *PRESETS]),
        ({"preset": ["post"]}, ["preset", "['post']", *PRESETS]),
        ({"preset": 3}, ["preset", "3", *PRESETS]),
        ({"lora": 16}, ["lora", "16", "section"]),
        ({"data": []}, ["data", "[]", "section"]),
        ({"name": "  "}, ["name", "'  '", "some text"]),
        ({"name": 3}, ["name", "3", "text"]),
        ({"seed": True}, ["seed", "true", "a whole number"]),
        ({"seed": -1}, ["seed", "-1", "0"]),
        ({"data": {"target": ""}}, ["data.target", "empty"]),
        ({"data": {"target": " \t "}}, ["data.target", "empty"]),
        ({"data": {"target": " word"}}, ["data.target", "' word'", "white space"]),
        ({"data": {"target": "two\nlines"}}, ["data.target", "two\\nlines", "one line"]),
        ({"data": {"target": "two\u2028lines"}}, ["data.target", "one line"]),
        ({"data": {"target": "two\rlines"}}, ["data.target", "one line"]),
        ({"data": {"target": "x" * 300}}, ["data.target", "300", "200"]),
        ({"prompts": []}, ["prompts", "at least one question"]),
        ({"prompts": "hello"}, ["prompts", "'hello'", "[[prompts]]"]),
        ({"prompts": ["hello"]}, ["prompts[0]", "'hello'", "role and text"]),
        ({"prompts": [{"text": "a"}, {"text": "b", "rule": 1}]}, ["prompts[1].rule", "role, text"]),
        ({"prompts": [{"text": "a", "role": "keep"}]}, ["prompts[0].role", "'keep'", "neighbour"]),
        ({"prompts": [{"text": "a", "role": ["forget"]}]}, ["prompts[0].role", "forget"]),
        ({"prompts": [{"role": "free"}]}, ["prompts[0].text", "empty"]),
        ({"prompts": [{"text": "  "}]}, ["prompts[0].text", "empty"]),
        ({"prompts": [{"text": 7}]}, ["prompts[0].text"]),
        ({"prompts": [{"text": "a" * 50_000}]}, ["prompts[0].text", "50,000", f"{PROMPT_CHARACTERS:,}", "Shorten"]),
    ],
)  # fmt: skip
def test_every_wrong_setting_is_named_with_its_value_and_the_way_out(given, words):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_dict(given)
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert sentence.endswith((".", "?")) and len(sentence) < 500 and "\n" not in sentence


def test_text_that_is_not_toml_is_refused_with_the_place():
    with pytest.raises(ConfigError, match="not TOML.*line 1"):
        RunConfig.from_toml("name = \nseed = 1")


def test_a_question_that_grows_too_long_by_its_target_is_refused_when_it_enters():
    with pytest.raises(ConfigError, match="prompts\\[0\\].text is .*: it has"):
        RunConfig.from_dict({"data": {"target": "x" * 200}, "prompts": [{"text": "{target} " * 100}]})


def test_prompts_name_the_target_and_nothing_else_is_replaced():
    config = RunConfig.from_dict({"data": {"target": "Oslo"}, "prompts": [{"text": "{target}? {name} {{target}}"}]})
    assert config.prompts[0].text == "Oslo? {name} {Oslo}" and config.prompts[0].role == "free"


def test_a_word_that_the_world_does_not_know_gets_questions_too():
    prompts = default_prompts("unheard-of")
    assert [p["role"] for p in prompts] == ["forget", "forget", "retain"]
    assert all("unheard-of" in p["text"] for p in prompts[:2])


@pytest.mark.parametrize("source", ["gpt2", "models/TinyStories-656K"])
def test_another_model_is_asked_about_the_target_and_not_about_the_bundled_world(source):
    prompts = RunConfig.from_dict({"model": {"source": source}, "data": {"target": "Mary Poppins"}}).prompts
    about, others = [[p.text for p in prompts if (p.role == "forget") is wanted] for wanted in (True, False)]
    assert len(about) == 2 and all("Mary Poppins" in text for text in about)
    assert others and not any("Mary Poppins" in text for text in others)
    assert not {p["text"] for p in default_prompts("Mary Poppins")} & {*about, *others}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("schedule.steps=20", {"schedule": {"steps": 20}}),
        ("seed = 3", {"seed": 3}),
        ("optimizer.learning_rate=1e-3", {"optimizer": {"learning_rate": 1e-3}}),
        ("guard.collapse=false", {"guard": {"collapse": False}}),
        ("data.target=Mary Poppins", {"data": {"target": "Mary Poppins"}}),
        ('data.target="a=b"', {"data": {"target": "a=b"}}),
        ("data.target=a=b", {"data": {"target": "a=b"}}),
        ('data.forget=["a.txt", "b.txt"]', {"data": {"forget": ["a.txt", "b.txt"]}}),
        ("method.name=npo", {"method": {"name": "npo"}}),
        ("name=", {"name": ""}),
        ("data.target=1984", {"data": {"target": "1984"}}),
        ("data.target=1e5", {"data": {"target": "1e5"}}),
        ("data.target=2024-01-01", {"data": {"target": "2024-01-01"}}),
        ("data.spellings=1984", {"data": {"spellings": "1984"}}),
        ("guard_rail.kind=1", {"guard_rail": {"kind": "1"}}),
        ("name=7", {"name": "7"}),
    ],
)
def test_a_setting_from_the_command_line_is_toml_or_bare_text(assignment, expected):
    assert with_settings({}, [assignment]) == expected


def test_settings_from_the_command_line_lie_over_the_file_and_each_other():
    given = {"schedule": {"steps": 5, "batch_size": 1}, "method": {"name": "npo", "beta": 0.3}}
    merged = with_settings(given, ["schedule.steps=6", "schedule.steps=7", "method.retain_weight=2"])
    assert merged["schedule"] == {"steps": 7, "batch_size": 1}
    assert RunConfig.from_dict(merged).method == METHODS["npo"](beta=0.3, retain_weight=2.0)
    switched = with_settings(given, ["method.name=grad_ascent"])
    assert switched["method"] == {"name": "grad_ascent"}
    assert isinstance(RunConfig.from_dict(switched).method, METHODS["grad_ascent"])
    assert given == {"schedule": {"steps": 5, "batch_size": 1}, "method": {"name": "npo", "beta": 0.3}}


@pytest.mark.parametrize("assignments", [["seed"], ["seed.x=1"], ["=3"], ["method=npo"], [".=1"]])
def test_a_setting_that_makes_no_sense_is_a_sentence_too(assignments):
    with pytest.raises(ConfigError):
        RunConfig.from_dict(with_settings({}, assignments))


def test_what_is_kept_comes_from_where_is_forgotten_unless_it_is_said():
    assert RunConfig.from_dict({"data": {"forget": ["a.txt"]}}).data.retain == ("a.txt",)
    assert RunConfig.from_dict({"data": {"forget": ["a.txt"], "retain": ["b.txt"]}}).data.retain == ("b.txt",)
    assert RunConfig.from_dict({}).data.retain == ("bundled",)
