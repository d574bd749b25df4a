"""RunConfig: everything that makes a run repeatable, checked where it enters, in and out as TOML. Imports no torch."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import tomli_w

from unlearn_core.settings import toml_text
from unlearn_core.settings.changes import Change, check_changeable, flat, nested, read_changes
from unlearn_core.settings.compatibility import check
from unlearn_core.settings.discovery import plugins
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.home import on_network
from unlearn_core.settings.knobs import knob
from unlearn_core.settings.presets import (
    DEFAULT_METHOD,
    DEFAULT_PRESET,
    LORA_RATE,
    PRESETS,
    WHOLE_TEXTS,
    Preset,
    default_prompts,
    usual_preset,
    usual_texts,
)
from unlearn_core.settings.sections import (
    BUNDLED_MODELS,
    DEFAULT_RAIL,
    PROMPT_CHARACTERS,
    RAILS,
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
    rail_settings,
)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. `RunConfig.from_dict({})` is the bundled run; every wrong setting raises ConfigError."""

    name: str = "first light"
    seed: int = knob(0, 0, 2**31 - 1, "Seed of data order, adapter initialisation and dropout.")
    preset: str = knob(DEFAULT_PRESET, choices=tuple(PRESETS), help="Recipe: named settings that the others override.")
    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    where: WhereSettings = field(default_factory=WhereSettings)
    data: DataSettings = field(default_factory=DataSettings)
    method: MethodSettings = field(default_factory=lambda: plugins("methods")[DEFAULT_METHOD]())
    guard_rail: GuardRailSettings = field(default_factory=lambda: rail_settings(DEFAULT_RAIL)())
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    as_run: AsRunSettings = field(default_factory=AsRunSettings)
    prompts: tuple[Prompt, ...] = ()
    changes: tuple[Change, ...] = ()  # in mid-run, by their steps

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunConfig:
        """Checks `content`, lays it over its preset's settings and fills in every default."""
        config = cls.read(content)
        check(config)
        for step in sorted({change.step for change in config.changes}):
            check(config.at(step))
        return config

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> RunConfig:
        """As `from_dict`, with each setting checked by itself; whether they go together is not checked."""
        source = _setting(content, "model", "source")
        source = source if isinstance(source, str) else BUNDLED_MODELS[0]
        name = content.get("preset", usual_preset(source))
        if not isinstance(name, str) or name not in PRESETS:
            raise _must_be("preset", name, f"one of {', '.join(PRESETS)}")
        merged = {**overlay(with_method_settings(PRESETS[name], content), content), "preset": name}
        data = merged.get("data", {})
        if isinstance(data, Mapping) and "forget" not in data and source not in BUNDLED_MODELS:
            merged["data"] = data = {**data, "forget": [usual_texts(source)]}
        if isinstance(data, Mapping) and "forget" in data and "retain" not in data:
            merged["data"] = {**data, "retain": data["forget"]}  # retain texts come from the same sources
        config: RunConfig = _read(cls, merged, "")
        return config

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        try:
            content = toml_text.parsed(text)
        except ValueError as error:
            raise ConfigError(f"The run file is not TOML: {error}") from None
        return cls.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` of it is the same config."""
        plain = asdict(self)
        plain["method"] = {"name": self.method.name, **plain["method"]}
        plain["prompts"] = [asdict(prompt) for prompt in self.prompts]
        plain["changes"] = [change.to_dict() for change in self.changes]
        for section in ("model", "data"):
            plain[section] = {k: list(v) if isinstance(v, tuple) else v for k, v in plain[section].items()}
        return plain

    def at(self, step: int) -> RunConfig:
        """The config with the settings that step `step` is taken with, after every change so far.

        Each setting is checked by itself, as in `read`.
        """
        return RunConfig.read(settings_at(self.to_dict(), step))

    def changed(self, step: int, settings: Mapping[str, Any]) -> RunConfig:
        """The config with one more change, from step `step` on; `settings` by their paths.

        Raises ConfigError for a setting that cannot change, and where one is wrong or they do not go together.
        """
        settings = check_changeable(flat(settings))
        steps = settings.get("schedule.steps")
        if type(steps) is int and steps < step:
            reason, fix = f"the run is at step {step - 1} already", "Stop it, or write a larger number"
            raise ConfigError(reason, field="schedule.steps", value=steps, fix=fix)
        changes = [change.to_dict() for change in self.changes]
        return RunConfig.from_dict({**self.to_dict(), "changes": [*changes, {"step": step, "set": settings}]})

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def with_method_settings(preset: Preset, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset's values; where another method than its own is chosen, with the settings recommended for that method.

    Of the guard rail's settings, those that the chosen one has, whichever the preset was made for. A preset for a
    larger model keeps its learning rate and steps: the recommended ones were tuned on the bundled model.
    """
    methods = plugins("methods")
    chosen = _setting(content, "method", "name")
    own, values = preset.values["method"]["name"], preset.values
    name = chosen if isinstance(chosen, str) and chosen in methods else own
    if chosen is None and (usual := usual_method(own, bool(_setting(content, "data", "everything")))) != own:
        name, values = usual, {**values, "method": {"name": usual}}
    facts = methods[name].facts
    rail = values.get("guard_rail", {})
    if name != own or preset.recommended:
        rail = {**rail, **facts.settings.get("guard_rail", {})}
        tuned = () if preset.bundled else ("method", "model", "optimizer", *(["schedule"] if facts.trains else []))
        values = overlay(values, {key: section for key, section in facts.settings.items() if key not in tuned})
    if _setting(content, "where", "kind") == "full" and facts.trains and "where" not in facts.settings:
        rate = values.get("optimizer", {}).get("learning_rate", OptimizerSettings().learning_rate)
        full = {"optimizer": {"learning_rate": float(f"{rate / LORA_RATE:.3g}")}, "schedule": {"sample_every": 5}}
        values = overlay(values, full)
    kind = _setting(content, "guard_rail", "kind") or rail.get("kind", DEFAULT_RAIL)
    return {**values, "guard_rail": {**of_rail(rail, kind), "kind": kind}}


def usual_method(own: str, everything: bool) -> str:
    """The method where nobody chose one: a preset's own, unless that puts names where texts are forgotten whole."""
    return WHOLE_TEXTS if everything and plugins("methods")[own].towards_stand_ins else own


def _setting(content: Mapping[str, Any], section: str, name: str) -> Any:
    """A setting as it is given, right or wrong; None where it is not."""
    values = content.get(section)
    return values.get(name) if isinstance(values, Mapping) else None


def of_rail(values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Of the values of a section `guard_rail`, those that a guard rail has; all of them for one that does not exist."""
    if kind not in RAILS:
        return dict(values)
    return {entry.name: values[entry.name] for entry in fields(rail_settings(kind)) if entry.name in values}


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, section by section.

    Another method's name drops the settings of the one below; another guard rail's kind, those that it does not have.
    """
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if not isinstance(value, Mapping) or not isinstance(under, Mapping):
            merged[key] = value
        elif key == "method" and value.get("name") not in (None, under.get("name")):
            merged[key] = dict(value)
        elif key == "guard_rail" and value.get("kind") not in (None, under.get("kind", DEFAULT_RAIL)):
            merged[key] = {**of_rail(under, value["kind"]), **value}
        else:
            merged[key] = {**under, **value}
    return merged


def settings_at(content: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """A run file's content with every change of it up to step `step` laid over it."""
    for change in content.get("changes", ()):
        if change["step"] <= step:
            content = overlay(content, nested(change["set"]))
    return content


def with_settings(content: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`content` with `section.key=value` assignments laid over it.

    Values are TOML, a bare word is text; so is whatever is typed for a setting that can only be text, as 1984.
    """
    assigned: dict[str, Any] = {}
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError("it has no '='", field="--set", value=assignment, fix="Write it as section.key=value")
        section, _, name = path.strip().partition(".")
        try:
            value = toml_text.parsed(f"value = {text}")["value"]
        except ConfigError as error:
            if not _holds_text(section, name, 0):
                raise ConfigError(error.reason, field="--set", value=assignment) from None
            value = text
        except ValueError:
            value = text
        if not isinstance(value, str) and _holds_text(section, name, value):
            value = text
        of_section = assigned.get(section)
        assigned[section] = {**(of_section if isinstance(of_section, dict) else {}), name: value} if name else value
    return overlay(content, assigned)


def _holds_text(section: str, name: str, value: Any) -> bool:
    """Whether a setting can only be text; or a list of texts, where the value is no list either."""
    of_run = typing.get_type_hints(RunConfig)
    kinds: list[Any] = [*plugins("methods").values()] if section == "method" else []
    kinds = [rail_settings(kind) for kind in RAILS] if section == "guard_rail" else kinds or [of_run.get(section)]
    hints = [hint for kind in kinds if is_dataclass(kind) and (hint := typing.get_type_hints(kind).get(name))]
    hints = hints if name else [of_run.get(section)]
    texts = typing.get_args(hints[0])[:1] == (str,) if hints and typing.get_origin(hints[0]) is tuple else False
    return bool(hints) and (all(hint is str for hint in hints) or (texts and not isinstance(value, list)))


# ------------------------------------------------------------------------------------------ reading and checking


def _read(kind: type, content: Any, path: str) -> Any:
    """An instance of the dataclass `kind` from plain values; `path` is its place in the run file, with a full stop."""
    if not isinstance(content, Mapping):
        raise _must_be(path.rstrip("."), content, "a section with keys of its own")
    known = {f.name: f for f in fields(kind)}
    for key in content:
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise _unknown(f"{path}{key}", content[key], f"{path}{near[0]}" if near else "", known)
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, entry in known.items():
        if name == "method":
            values[name] = _read_method(content.get(name, {}))
        elif name == "guard_rail":
            values[name] = _read_guard_rail(content.get(name, {}))
        elif name in ("prompts", "changes"):
            continue
        elif is_dataclass(hints[name]):
            values[name] = _read(hints[name], content.get(name, {}), f"{path}{name}.")
        elif name in content:
            values[name] = _check(content[name], hints[name], entry.metadata, f"{path}{name}")
    if kind is RunConfig:
        target = _check_target(values["data"].target)
        values["prompts"] = _read_prompts(
            content.get("prompts", default_prompts(target, values["model"].source)), target
        )
        values["changes"] = read_changes(content.get("changes", ()))
        if "name" in content and not values["name"].strip():
            raise _must_be("name", content["name"], "some text")
    return kind(**values)


def _read_method(content: Any) -> Any:
    methods = plugins("methods")
    if not isinstance(content, Mapping):
        raise ConfigError("it must be a section", field="method", value=content, fix="Write [method] with a name")
    name = content.get("name", DEFAULT_METHOD)
    if not isinstance(name, str) or name not in methods:
        raise _must_be("method.name", name, f"one of {', '.join(methods)}")
    return _read(methods[name], {key: value for key, value in content.items() if key != "name"}, "method.")


def _read_guard_rail(content: Any) -> GuardRailSettings:
    if not isinstance(content, Mapping):
        raise ConfigError(
            "it must be a section", field="guard_rail", value=content, fix="Write [guard_rail] with a kind"
        )
    kind = _check(content.get("kind", DEFAULT_RAIL), str, {"choices": RAILS}, "guard_rail.kind")
    settings = {rail: [entry.name for entry in fields(rail_settings(rail)) if entry.init] for rail in RAILS}
    own = {name: value for name, value in content.items() if name != "kind"}
    owners = {name: [rail for rail in RAILS if name in settings[rail]] for name in own}
    foreign = [name for name, rails in owners.items() if rails and kind not in rails]
    for name in foreign[:1]:
        known = f"the settings of this guard rail are {', '.join(settings[kind])}"
        raise ConfigError(
            known if settings[kind] else "this guard rail has no settings",
            field=f"guard_rail.{name}",
            value=own[name],
            fix=f"Leave out {', '.join(foreign)}, or choose a guard rail that has {name}: {', '.join(owners[name])}",
            others={"guard_rail.kind": kind},
        )
    read: GuardRailSettings = _read(rail_settings(kind), own, "guard_rail.")
    return read


def _read_prompts(content: Any, target: str) -> tuple[Prompt, ...]:
    if not isinstance(content, list | tuple):
        raise ConfigError(
            "it must be a list", field="prompts", value=content, fix="Write [[prompts]] with role and text"
        )
    prompts = []
    for index, entry in enumerate(content):
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
        raise _must_be("prompts", content, "at least one question")
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
        reason, fix = "it is empty", "Write the word to be forgotten"
    elif target != target.strip() or len(target.splitlines()) > 1:
        reason, fix = "it must be one line without white space around it", ""
    elif len(target) > TARGET_CHARACTERS:
        reason, fix = f"it has {len(target)} characters, and at most {TARGET_CHARACTERS} are possible", "Shorten it"
    else:
        return target
    raise ConfigError(reason, field="data.target", value=target, fix=fix)


def _check(value: Any, hint: Any, facts: Mapping[str, Any], path: str) -> Any:
    """A setting's value in the type of its field. `facts`: the field's knob."""
    if facts.get("path"):
        _check_places(value, path)
    if typing.get_origin(hint) is tuple:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise _must_be(path, value, "a list of texts")
        if not value and facts.get("filled"):
            raise _must_be(path, value, "a list of texts with at least one in it")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise _must_be(path, value, "a number that fits into 64 bits") from None
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        plain = hint is str and not isinstance(value, list | Mapping)
        raise _must_be(path, value, names[hint], f'Write it in quotation marks: "{value}"' if plain else "")
    if facts.get("choices") and value not in facts["choices"]:
        raise _must_be(path, value, f"one of {', '.join(map(str, facts['choices']))}")
    low, high = facts.get("low"), facts.get("high")
    if hint in (int, float) and not ((low is None or value >= low) and (high is None or value <= high)):
        raise _must_be(path, value, f"a number between {low:g} and {high:g}")
    return value


def _check_places(value: Any, path: str) -> None:
    """Raises ConfigError for a place on another machine: Windows signs in there as soon as it is looked at."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, str) and on_network(each.removeprefix("hf:")):
            reason = "it names a folder of another machine, and those are not opened"
            raise ConfigError(reason, field=path, value=each, fix="Copy it to this machine, or write a single slash")


def _must_be(path: str, value: Any, allowed: str, fix: str = "") -> ConfigError:
    return ConfigError(f"it must be {allowed}", field=path, value=value, fix=fix)


def _unknown(path: str, value: Any, near: str, known: Iterable[str]) -> ConfigError:
    fix = f"Did you mean {near}?" if near else f"Known here: {', '.join(known)}"
    return ConfigError("there is no such setting", field=path, value=value, fix=fix)
