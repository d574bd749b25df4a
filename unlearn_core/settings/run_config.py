"""RunConfig: everything that makes a run repeatable, checked where it enters, in and out as TOML. Imports no torch."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import tomli_w

from unlearn_core.settings.compatibility import check
from unlearn_core.settings.discovery import plugins
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.knobs import knob
from unlearn_core.settings.presets import DEFAULT_METHOD, DEFAULT_PRESET, LORA_RATE, PRESETS, Preset, default_prompts
from unlearn_core.settings.sections import (
    PROMPT_CHARACTERS,
    ROLES,
    TARGET_CHARACTERS,
    AsRunSettings,
    DataSettings,
    GuardRailSettings,
    GuardSettings,
    LoraSettings,
    MethodSettings,
    ModelSettings,
    OptimizerSettings,
    Prompt,
    ScheduleSettings,
    WhereSettings,
)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. `RunConfig.from_dict({})` is the bundled run; every wrong setting raises ConfigError."""

    name: str = "first light"
    seed: int = knob(0, 0, 2**31 - 1, "decides data order, adapter start and dropout")
    preset: str = knob(DEFAULT_PRESET, choices=tuple(PRESETS))
    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    where: WhereSettings = field(default_factory=WhereSettings)
    data: DataSettings = field(default_factory=DataSettings)
    method: MethodSettings = field(default_factory=lambda: plugins("methods")[DEFAULT_METHOD]())
    guard_rail: GuardRailSettings = field(default_factory=GuardRailSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    as_run: AsRunSettings = field(default_factory=AsRunSettings)
    prompts: tuple[Prompt, ...] = ()

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> RunConfig:
        """Checks `given`, lays it over its preset's settings and fills in every default."""
        name = given.get("preset", DEFAULT_PRESET)
        if not isinstance(name, str) or name not in PRESETS:
            raise _must_be("preset", name, f"one of {', '.join(PRESETS)}")
        merged = overlay(with_method_settings(PRESETS[name], given), given)
        data = merged.get("data")
        if isinstance(data, Mapping) and "forget" in data and "retain" not in data:
            merged["data"] = {**data, "retain": data["forget"]}  # what is kept is of the same kind
        config: RunConfig = _read(cls, merged, "")
        check(config)
        return config

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"The run file is not TOML: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` of it is the same config."""
        plain = asdict(self)
        plain["method"] = {"name": self.method.name, **plain["method"]}
        plain["prompts"] = [asdict(prompt) for prompt in self.prompts]
        for section in ("model", "data"):
            plain[section] = {k: list(v) if isinstance(v, tuple) else v for k, v in plain[section].items()}
        return plain

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def with_method_settings(preset: Preset, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset's values; where another method than its own is chosen, with the settings recommended for that method.

    A preset for a larger model keeps its learning rate and steps: the recommended ones were tuned on the bundled model.
    """
    methods = plugins("methods")
    section = given.get("method")
    chosen = section.get("name") if isinstance(section, Mapping) else None
    own = preset.values["method"]["name"]
    name = chosen if isinstance(chosen, str) and chosen in methods else own
    facts, values = methods[name].facts, preset.values
    if name != own:
        tuned = () if preset.bundled else ("method", "model", "optimizer", *(["schedule"] if facts.trains else []))
        values = overlay(values, {key: section for key, section in facts.settings.items() if key not in tuned})
    where = given.get("where")
    if isinstance(where, Mapping) and where.get("kind") == "full" and facts.trains and "where" not in facts.settings:
        rate = values.get("optimizer", {}).get("learning_rate", OptimizerSettings().learning_rate)
        full = {"optimizer": {"learning_rate": float(f"{rate / LORA_RATE:.3g}")}, "schedule": {"sample_every": 5}}
        values = overlay(values, full)
    return values


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, section by section. Another method's name drops the knobs of the one below."""
    merged = dict(below)
    for key, value in above.items():
        if (
            key == "method"
            and isinstance(value, Mapping)
            and isinstance(below.get(key, {}), Mapping)
            and value.get("name") not in (None, below.get(key, {}).get("name"))
        ):
            merged[key] = dict(value)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


def with_settings(given: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`given` with `section.key=value` assignments laid over it; values are TOML, a bare word is text."""
    merged: dict[str, Any] = dict(given)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError("it has no '='", field="--set", value=assignment, fix="Write it as section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for key in reversed(path.strip().split(".")):
            value = {key: value}
        merged = overlay(merged, value)
    return merged


# ------------------------------------------------------------------------------------------ reading and checking


def _read(kind: type, given: Any, path: str) -> Any:
    """An instance of the dataclass `kind` from plain values; `path` is its place in the run file, with a full stop."""
    if not isinstance(given, Mapping):
        raise _must_be(path.rstrip("."), given, "a section with keys of its own")
    known = {f.name: f for f in fields(kind)}
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise _unknown(f"{path}{key}", given[key], f"{path}{near[0]}" if near else "", known)
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, entry in known.items():
        if name == "method":
            values[name] = _read_method(given.get(name, {}))
        elif name == "prompts":
            continue
        elif is_dataclass(hints[name]):
            values[name] = _read(hints[name], given.get(name, {}), f"{path}{name}.")
        elif name in given:
            values[name] = _check(given[name], hints[name], entry.metadata, f"{path}{name}")
    if kind is RunConfig:
        target = _check_target(values["data"].target)
        values["prompts"] = _read_prompts(given.get("prompts", default_prompts(target, values["model"].source)), target)
        if "name" in given and not values["name"].strip():
            raise _must_be("name", given["name"], "some text")
    return kind(**values)


def _read_method(given: Any) -> Any:
    methods = plugins("methods")
    if not isinstance(given, Mapping):
        raise ConfigError("it must be a section", field="method", value=given, fix="Write [method] with a name")
    name = given.get("name", DEFAULT_METHOD)
    if not isinstance(name, str) or name not in methods:
        raise _must_be("method.name", name, f"one of {', '.join(methods)}")
    return _read(methods[name], {key: value for key, value in given.items() if key != "name"}, "method.")


def _read_prompts(given: Any, target: str) -> tuple[Prompt, ...]:
    if not isinstance(given, list | tuple):
        raise ConfigError("it must be a list", field="prompts", value=given, fix="Write [[prompts]] with role and text")
    prompts = []
    for index, entry in enumerate(given):
        path = f"prompts[{index}]"
        if not isinstance(entry, Mapping):
            raise _must_be(path, entry, "a table with role and text")
        for key in sorted(set(entry) - {"role", "text"}):
            raise _unknown(f"{path}.{key}", entry[key], "", ("role", "text"))
        role, text = entry.get("role", "free"), entry.get("text", "")
        if role not in ROLES:
            raise _must_be(f"{path}.role", role, f"one of {', '.join(ROLES)}")
        text = check_prompt(text, f"{path}.text").replace("{target}", target)
        prompts.append(Prompt(role, check_prompt(text, f"{path}.text")))
    if not prompts:
        raise _must_be("prompts", given, "at least one question")
    return tuple(prompts)


def check_prompt(text: Any, field: str = "The question") -> str:
    """The question without outer white space. Raises ConfigError where it is empty or longer than a model can read."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError("it is empty", field=field, value=text, fix="Write what the model is to be asked")
    if len(text) > PROMPT_CHARACTERS:
        reason = f"it has {len(text):,} characters, and at most {PROMPT_CHARACTERS:,} can be asked"
        raise ConfigError(reason, field=field, value=text, fix="Shorten it")
    return text.strip()


def _check_target(target: str) -> str:
    if not target.strip():
        reason, fix = "it is empty", "Write the word that is to be forgotten"
    elif target != target.strip() or len(target.splitlines()) > 1:
        reason, fix = "it must be one line without white space around it", ""
    elif len(target) > TARGET_CHARACTERS:
        reason, fix = f"it has {len(target)} characters, and at most {TARGET_CHARACTERS} are possible", "Shorten it"
    else:
        return target
    raise ConfigError(reason, field="data.target", value=target, fix=fix)


def _check(value: Any, hint: Any, facts: Mapping[str, Any], path: str) -> Any:
    """A setting's value in the type of its field. `facts`: the field's knob."""
    if typing.get_origin(hint) is tuple:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise _must_be(path, value, "a list of texts")
        if not value and facts.get("filled"):
            raise _must_be(path, value, "a list of texts with at least one in it")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise _must_be(path, value, names[hint])
    if facts.get("choices") and value not in facts["choices"]:
        raise _must_be(path, value, f"one of {', '.join(map(str, facts['choices']))}")
    low, high = facts.get("low"), facts.get("high")
    if hint in (int, float) and not ((low is None or value >= low) and (high is None or value <= high)):
        raise _must_be(path, value, f"a number between {low:g} and {high:g}")
    return value


def _must_be(path: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"it must be {allowed}", field=path, value=value)


def _unknown(path: str, value: Any, near: str, known: Iterable[str]) -> ConfigError:
    fix = f"Did you mean {near}?" if near else f"Known here: {', '.join(known)}"
    return ConfigError("there is no such setting", field=path, value=value, fix=fix)
