"""The start form as one value: a preset, the settings that override it, and what a person typed.

Everything here is a pure function of a `Draft`: no session, no page, no file. `resolve` makes a run's settings of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import PurePath
from typing import Any, NamedTuple

from pages.setup.knobs import Field, fields_of, plain, small, value_of
from unlearn_core.methods import METHODS
from unlearn_core.settings.compatibility import broken, settle, unused, with_values
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.presets import (
    DEFAULT_PRESET,
    PRESETS,
    default_prompts,
    suggested_targets,
    usual_preset,
    usual_texts,
)
from unlearn_core.settings.run_config import RunConfig, overlay, usual_method
from unlearn_core.settings.sections import BUNDLED_MODELS, KINDS, RAILS
from unlearn_core.world import TARGET

Value = str | int | float | bool

SAME = "same"  # retain texts: the forget texts
BETWEEN = ";"  # several sources in one field
ROLES = ("forget", "forget", "neighbour", "retain")  # of the four questions
MOST_FREE = 6
MOST_CHARACTERS = 100_000  # of one stored text
CHANGING = ("where.kind", "guard_rail.kind")  # settings that change what others begin with
STAYS = ("lora.", "where.")  # overrides that are kept where another method is chosen
LARGEST = 2**53 - 1  # a number that a browser holds exactly


@dataclass(frozen=True)
class Draft:
    """The contents of the form. None stands for a default: of the target, or of a question.

    `overrides`: path in a run file (`optimizer.learning_rate`) -> value, of settings that differ from what preset,
    method and `where.kind` begin with. `method`: empty for the preset's own. `forget_from`, `keep_from`: sources as
    typed, several with a `;` between. `kind`, `ask_this`: what the target is, and a person's own questions about it,
    one a line, where the model is asked for the texts. `corpus_questions`: the first questions of the texts, where all
    of them are to be forgotten. `excluded`: ids of occurrences of `excluded_of[0]` in the texts `excluded_of[1]`.
    """

    preset: str = DEFAULT_PRESET
    method: str = ""
    overrides: Mapping[str, Value] = field(default_factory=dict)
    model: str = "bundled"
    earlier: tuple[str, ...] = ()
    target: str | None = None
    questions: tuple[str | None, ...] = (None,) * len(ROLES)
    free: tuple[str, ...] = ()
    forget_from: str = "bundled"
    keep_from: str = SAME
    kind: str = "auto"
    ask_this: str = ""
    everything: bool = False
    corpus_questions: tuple[str, ...] = ()
    match: str = "literal"
    spellings: str = ""
    stand_ins: str = ""
    whole_word: bool = True
    ignore_case: bool = True
    neighbours: bool = True
    partial_names: bool = True
    text_field: str = ""
    question_field: str = ""
    answer_field: str = ""
    excluded: tuple[str, ...] = ()
    excluded_of: tuple[str, ...] = ("", "")

    @property
    def word(self) -> str:
        """The target as it is shown."""
        if self.target is not None:
            return self.target
        return (PurePath(self.forget_from).name[:60] if self.everything else "") or suggested_targets(self.model)[0]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The occurrences that are excluded by hand; they belong to one target in certain texts."""
        return self.excluded if self.excluded_of == (self.word.strip(), self.forget_from) else ()


DATA_FIELDS = (
    "kind", "everything", "whole_word", "ignore_case", "neighbours", "partial_names", "text_field", "question_field",
    "answer_field",
)  # fmt: skip
TEXT_FIELDS = (*DATA_FIELDS, "model", "forget_from", "keep_from", "ask_this", "match", "spellings", "stand_ins")
UNTOUCHED = Draft()


class Files(NamedTuple):
    """How what was typed becomes sources, a model and adapters; each raises ConfigError where it cannot."""

    texts: Callable[[str], list[str]]
    model: Callable[[str], str]
    adapters: Callable[[Iterable[str]], list[str]]


AS_TYPED = Files(lambda typed: [each.strip() for each in typed.split(BETWEEN) if each.strip()], str.strip, list)

# ------------------------------------------------------------------------------------------------- the questions


def usual_questions(draft: Draft) -> tuple[str, ...]:
    """The four questions that fit target and model; of whole texts, the first two are those of the texts."""
    word = draft.word.strip()
    if not word:
        return ("",) * len(ROLES)
    prompts = default_prompts(word, draft.model)
    about = [prompt["text"] for prompt in prompts if prompt["role"] == "forget"]
    keep = [prompt["text"] for prompt in prompts if prompt["role"] != "forget"]
    if draft.everything:
        about = [*draft.corpus_questions[:2], *about[len(draft.corpus_questions) :]]
    about = [*about, "", ""][:2]
    return (*about, keep[0] if len(keep) > 1 else "", keep[-1] if keep else "")


def questions(draft: Draft) -> tuple[str, ...]:
    """The four questions as they are shown."""
    usual = usual_questions(draft)
    return tuple(given if own is None else own for own, given in zip(draft.questions, usual, strict=True))


def prompts(draft: Draft) -> list[dict[str, str]]:
    """What the run asks: role and text; empty questions are not asked."""
    texts = [*zip(ROLES, questions(draft), strict=True), *(("free", text) for text in draft.free)]
    return [{"role": role, "text": text.strip()} for role, text in texts if text.strip()]


# ------------------------------------------------------------------------------------ preset, method and overrides


class Choice(NamedTuple):
    """`config`: the settings of the draft; `start`: what preset, method and `where.kind` have by themselves."""

    method: str
    config: RunConfig
    start: RunConfig

    @property
    def fields(self) -> dict[str, Field]:
        """The settings that are shown, by their paths."""
        return fields_of(self.method, self.config.guard_rail.kind)


def own_method(preset: str) -> str:
    """The method of a preset."""
    return str(PRESETS[preset].values.get("method", {}).get("name", "grad_ascent"))


def presets_for(model: str) -> list[str]:
    """The presets for a model, its own first: those made for large ones make nothing happen in the bundled one."""
    if model in BUNDLED_MODELS:
        return [name for name, preset in PRESETS.items() if preset.bundled]
    return sorted(PRESETS, key=lambda name: PRESETS[name].bundled)


@lru_cache(maxsize=512)
def base(
    preset: str, method: str, source: str = "bundled", kind: str = "", rail: str = ""
) -> tuple[RunConfig, ConfigError | None]:
    """A preset with this method and what that brings with it; and why the two cannot be, of this model.

    Which of the bundled models it begins with is the method's to say. `kind`: what is trained, `rail`: the guard rail,
    if these are chosen; whether the guard rail goes with the rest is not checked.
    """
    where = {"where": {"kind": kind}} if kind else {}
    given: dict[str, Any] = {"preset": preset, "method": {"name": method}, **where}
    why = None
    own = () if source in BUNDLED_MODELS else ({**given, "model": {"source": source}},)
    for attempt in (*own, given, {"preset": preset}):
        try:
            config = RunConfig.from_dict(attempt)
            return RunConfig.read({**attempt, "guard_rail": {"kind": rail}}) if rail else config, why
        except ConfigError as error:
            why = why or error
    raise AssertionError(why)  # a preset by itself is always right


def methods_offered(preset: str, model: str) -> tuple[list[str], dict[str, ConfigError]]:
    """(the methods that can be chosen with a preset and a model, the others with the reason)."""
    reasons = {name: base(preset, name, model)[1] for name in METHODS}
    return [n for n, why in reasons.items() if not why], {n: why for n, why in reasons.items() if why}


def chosen(draft: Draft) -> Choice:
    """The settings that the draft stands for; what excludes another choice has given way where it can."""
    method, start = _start(draft)
    fields = fields_of(method, start.guard_rail.kind)
    shown = {path: v for path, v in draft.overrides.items() if path in fields and _showable(fields[path], v)}
    config = with_values(start, shown)
    config = replace(config, model=replace(config.model, source=draft.model))
    beside = settle(replace(config, model=replace(config.model, earlier=draft.earlier)))
    # Earlier adapters go with an adapter; without one they are kept in the draft for when there is one again.
    alone = draft.earlier and any("where.kind" in rule.fields for rule in broken(beside))
    return Choice(method, settle(config) if alone else beside, start)


def _start(draft: Draft) -> tuple[str, RunConfig]:
    """The method and what it begins with; the preset's own where the two cannot be at all."""
    own = own_method(draft.preset)
    method = draft.method or usual_method(own, draft.everything)
    kind, rail = (str(draft.overrides.get(path, "")) for path in CHANGING)
    facts = METHODS[method].facts
    kind, rail = kind if kind in facts.where else "", rail if rail in facts.rails else ""
    start, _ = base(draft.preset, method, draft.model, kind, rail)
    return (method if isinstance(start.method, METHODS[method]) else own), start


def with_preset(draft: Draft, preset: str) -> Draft:
    """Another preset, with its own method and settings."""
    return _with_its_model(replace(draft, preset=preset, method="", overrides={}))


def with_method(draft: Draft, method: str) -> Draft:
    """Another method, with its own settings; what is trained is as it was chosen."""
    staying = {path: value for path, value in draft.overrides.items() if path.startswith(STAYS)}
    return _with_its_model(replace(draft, method=method, overrides=staying))


def _with_its_model(draft: Draft) -> Draft:
    """Of the bundled models, the one that preset and method begin with."""
    return replace(draft, model=_start(draft)[1].model.source) if draft.model in BUNDLED_MODELS else draft


def with_model(draft: Draft, model: str) -> Draft:
    """Another model; preset and texts become those that are usual for it where they were the usual ones."""
    texts = usual_texts(model) if draft.forget_from == usual_texts(draft.model) else draft.forget_from
    usual = draft.preset == usual_preset(draft.model) or draft.preset not in presets_for(model)
    draft = replace(draft, model=model, forget_from=texts)
    return replace(draft, preset=usual_preset(model), overrides={}) if usual else draft


def with_setting(draft: Draft, path: str, value: Value | None) -> Draft:
    """One setting; emptied, or as preset and method have it, it is no override any more."""
    others = {other: override for other, override in draft.overrides.items() if other != path}
    if value is not None and value != "":
        # Of what decides over others, what is there without it.
        method, start = _start(replace(draft, overrides=others) if path in CHANGING else draft)
        value = plain(fields_of(method, start.guard_rail.kind)[path], value)
        others |= {path: value} if value != value_of(start, path) else {}
    return replace(draft, overrides=others)


def as_preset(draft: Draft) -> Draft:
    """Method and all settings as the preset has them."""
    return with_preset(replace(draft, earlier=()), draft.preset)


def leave_out(draft: Draft, occurrence: str, out: bool) -> Draft:
    """Excludes one occurrence, or takes it back."""
    ids = {*draft.left_out, occurrence} if out else {*draft.left_out} - {occurrence}
    return replace(draft, excluded=tuple(sorted(ids)), excluded_of=(draft.word.strip(), draft.forget_from))


# ------------------------------------------------------------------------------------------------ what differs


def changed(choice: Choice, start: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Path -> (value of the draft, value of `start`), of every setting that differs and has an effect."""
    differing = {}
    same_rail = choice.config.guard_rail.kind == start.guard_rail.kind
    for path in choice.fields:
        # Another method and another guard rail have other settings.
        own = path.startswith("method.") or (path.startswith("guard_rail.") and not same_rail and path not in CHANGING)
        here, there = value_of(choice.config, path), value_of(choice.start if own else start, path)
        if here != there and unused(choice.config, path) is None:
            differing[path] = (here, there)
    return differing


def given(draft: Draft) -> dict[str, Any]:
    """What a run file has to say of method and settings beside its preset."""
    choice = chosen(draft)
    sections: dict[str, Any] = {}
    if choice.method != own_method(draft.preset):
        sections["method"] = {"name": choice.method}
    usual = base(draft.preset, choice.method, draft.model)[0]
    for path in CHANGING:
        section, name = path.split(".")
        if (kind := value_of(choice.start, path)) != value_of(usual, path):
            sections[section] = {name: kind}
    for path, (value, _) in changed(choice, choice.start).items():
        section, name = path.split(".")
        sections = overlay(sections, {section: {name: value}})
    if earlier := choice.config.model.earlier:
        sections["model"] = {"earlier": list(earlier)}
    return sections


def differences(draft: Draft) -> list[str]:
    """The differences of the draft from its preset, each in a few words."""
    choice = chosen(draft)
    words, own, fields = [], own_method(draft.preset), choice.fields
    if choice.method != own:
        words.append(f"{METHODS[choice.method].facts.label} instead of {METHODS[own].facts.label}")
    differing = changed(choice, base(draft.preset, own, draft.model)[0])
    for path in sorted(differing, key=lambda path: not path.startswith("where.")):  # where says most
        words.append(fields[path].instead(*differing[path]))
    if count := len(choice.config.model.earlier):
        words.append(f"{count} earlier {'adapter stays' if count == 1 else 'adapters stay'} on")
    return words


# --------------------------------------------------------------------------------------- to a run and from a run


def resolve(draft: Draft, files: Files = AS_TYPED) -> RunConfig:
    """The run that the draft describes. Raises ConfigError in a sentence."""
    about = files.texts(draft.forget_from)
    keep = about if draft.keep_from in (SAME, draft.forget_from) else files.texts(draft.keep_from)
    data: dict[str, Any] = {"target": draft.word.strip(), "forget": about, "retain": keep, "match": draft.match}
    for name in ("spellings", "stand_ins"):
        data[name] = [each.strip() for each in getattr(draft, name).split(",") if each.strip()]
    data["questions"] = [each.strip() for each in draft.ask_this.splitlines() if each.strip()]
    for name in DATA_FIELDS:
        value = getattr(draft, name)
        data[name] = value.strip() if isinstance(value, str) else value
    data["excluded"] = sorted(draft.left_out)
    written = {"preset": draft.preset, "model": {"source": files.model(draft.model)}, "data": data}
    merged = overlay({**written, "prompts": prompts(draft)}, given(draft))
    if earlier := merged["model"].get("earlier"):
        merged["model"] = {**merged["model"], "earlier": files.adapters(earlier)}
    return RunConfig.from_dict(merged)


def of_run(config: Mapping[str, Any]) -> Draft:
    """The draft that a run was made of; a value that cannot be any more is the preset's."""
    data, model = config.get("data", {}), config.get("model", {})
    preset = config["preset"] if config.get("preset") in PRESETS else DEFAULT_PRESET
    method = config.get("method", {}).get("name")
    about, keep = (BETWEEN.join(data.get(side, ["bundled"])) for side in ("forget", "retain"))
    draft = Draft(
        preset=preset,
        method=method if method in METHODS and method != own_method(preset) else "",
        model=model.get("source", "bundled"),
        earlier=tuple(map(str, model.get("earlier", ()))),
        target=str(data.get("target", TARGET)),
        forget_from=about,
        keep_from=SAME if keep == about else keep,
        match="regex" if data.get("match") == "regex" else "literal",
        spellings=", ".join(data.get("spellings", ())),
        stand_ins=", ".join(data.get("stand_ins", ())),
        ask_this="\n".join(data.get("questions", ())),
        excluded=tuple(sorted(data.get("excluded", ()))),
        excluded_of=(str(data.get("target", "")), about),
        **{name: data.get(name, getattr(UNTOUCHED, name)) for name in DATA_FIELDS},
    )
    for path in CHANGING:
        draft = _with_setting_of(config, path, draft)
    for path in chosen(draft).fields:
        draft = _with_setting_of(config, path, draft)
    return _with_prompts(draft, config.get("prompts", ())) if "prompts" in config else draft


def _with_setting_of(config: Mapping[str, Any], path: str, draft: Draft) -> Draft:
    """The draft with a setting of a run's config, where it can be shown."""
    section, name = path.split(".")
    value = config.get(section, {}).get(name)
    return with_setting(draft, path, value) if possible(chosen(draft).fields[path], value) else draft


def _with_prompts(draft: Draft, prompts: Iterable[Mapping[str, str]]) -> Draft:
    by_role: dict[str, list[str]] = {role: [] for role in (*ROLES, "free")}
    for prompt in prompts:
        by_role[prompt["role"]].append(prompt["text"])
    texts = [by_role[role].pop(0) if by_role[role] else "" for role in ROLES]
    rest = [text for role in ("forget", "neighbour", "retain", "free") for text in by_role[role]]
    pairs = zip(texts, usual_questions(draft), strict=True)
    return replace(
        draft, questions=tuple(None if t == usual else t for t, usual in pairs), free=tuple(rest[:MOST_FREE])
    )


def possible(setting: Field, value: Any) -> bool:
    """Whether a value from elsewhere is one that the setting's field can show and a run can have."""
    if isinstance(value, bool) or isinstance(setting.default, bool):
        return isinstance(value, bool) and isinstance(setting.default, bool)
    if isinstance(value, int | float) and isinstance(setting.default, int | float):
        whole = isinstance(value, int) or isinstance(setting.default, float)
        below = setting.low is None or value >= setting.low
        return whole and below and (setting.high is None or value <= setting.high)
    return isinstance(value, type(setting.default)) and (not setting.choices or value in setting.choices)


# ------------------------------------------------------------------------------------------- to text and from text


def to_json(draft: Draft) -> str:
    return json.dumps(asdict(draft), ensure_ascii=False)


def from_json(text: str | bytes) -> Draft:
    """The draft in a stored text. Raises ValueError where it is none, or one that the form could not show."""
    stored = json.loads(text)
    if not isinstance(stored, dict):
        raise ValueError("it is no object")
    values: dict[str, Any] = {}
    for name, usual in asdict(UNTOUCHED).items():
        value = stored.get(name, usual)
        if name != "target":
            _require(isinstance(value, list | tuple) if isinstance(usual, tuple) else type(value) is type(usual), name)
        values[name] = tuple(value) if isinstance(value, list) else value
    for text_or_none in (values["target"], *values["questions"]):
        _require(text_or_none is None or isinstance(text_or_none, str), "a question")
    _require(len(values["questions"]) == len(ROLES) and len(values["free"]) <= MOST_FREE, "questions")
    _require(values["match"] in ("literal", "regex"), "match")
    _require(values["kind"] in KINDS, "kind")
    _require(values["method"] in ("", *METHODS) and values["preset"] in presets_for(values["model"]), "preset, method")
    texts = [each for value in values.values() for each in (value if isinstance(value, tuple) else (value,))]
    for each in (*texts, *values["overrides"].values()):
        _require(each is None or isinstance(each, str | bool | int | float | dict), "a text")
        if isinstance(each, str):
            _require(len(each) <= MOST_CHARACTERS, "a text")
            each.encode("utf-8")  # UnicodeEncodeError, which is a ValueError: a half of a character cannot be shown
    for name in ("earlier", "free", "corpus_questions", "excluded", "excluded_of"):
        _require(all(isinstance(each, str) for each in values[name]), name)
    draft = Draft(**values)
    method = chosen(replace(draft, overrides={})).method
    # Of guard rails that are not chosen too: their settings wait for when they are.
    fields = {path: field for rail in RAILS for path, field in fields_of(method, rail).items()}
    fields |= chosen(draft).fields
    _require(all(path in fields and _showable(fields[path], value) for path, value in draft.overrides.items()), "it")
    return draft


def _require(right: bool, name: str) -> None:
    if not right:
        raise ValueError(f"{name} is not as it is stored")


def _showable(setting: Field, value: Any) -> bool:
    """Whether a field can show a stored value. One beyond its range can stand in a number field, not on a slider."""
    if isinstance(value, bool) or not isinstance(value, int | float) or small(setting):
        return possible(setting, value)
    return possible(setting._replace(low=None, high=None), value) and abs(value) <= LARGEST
