"""The settings of a run as fields on a page: each one's name, range and meaning come from its knob in the config."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import streamlit as st

from pages.shared import page
from pages.shared.format import setting
from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.methods import METHODS
from unlearn_core.settings.knobs import knobs
from unlearn_core.settings.presets import DEFAULT_METHOD
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import DEFAULT_RAIL, rail_settings

# The sections of a run file that the card's third row shows, and the fields of each under the names a person reads.
NAMES: dict[str, dict[str, str]] = {
    "guard_rail": {
        "kind": "guard rail",
        "rows": "one direction for each",
        "groups": "groups of samples",
        "batches": "retain batches at a refresh",
        "batch_size": "samples in such a batch",
        "refresh": "refresh by",
        "every": "steps between refreshes",
        "drift": "drift that triggers a refresh",
        "history": "refreshes protected together",
        "scope": "one span for",
        "apply_to": "what is projected",
        "optimizer_states": "optimizer states",
        "neighbours": "neighbours among the samples",
        "energy": "protected share of the energy",
    },
    "optimizer": {
        "name": "optimizer",
        "learning_rate": "learning rate",
        "weight_decay": "weight decay",
        "momentum": "momentum",
        "max_gradient_norm": "gradient clipping (norm)",
    },
    "schedule": {
        "steps": "steps",
        "batch_size": "batch size",
        "decay": "learning rate over time",
        "warmup": "warm-up steps",
        "sample_every": "steps between answers",
        "evaluate_every": "steps between measurements",
        "checkpoint_every": "steps between checkpoints",
        "answer_tokens": "longest answer, in tokens",
    },
    "where": {"kind": "what is trained", "mask": "mask", "share": "share that may change"},
    "lora": {"modules": "adapted layers", "rank": "rank", "alpha": "alpha", "dropout": "dropout"},
    "guard": {
        "not_finite": "pause at a loss that is not a number",
        "retain_budget": "retain budget",
        "forgotten_enough": "pause when forgotten enough",
        "collapse": "pause at a collapse",
    },
    "as_run": {
        "leftover_gradients": "retain gradients left over",
        "padding_trained": "padding trained on",
    },
}
# What a choice is called where its own name is not a word.
WORDS: dict[str, dict[str, str]] = {
    "guard_rail.kind": {"none": "none", **{kind: rail.facts.label for kind, rail in GUARD_RAILS.items()}},
    "guard_rail.rows": {"group": "group of samples", "sample": "sample", "logit": "logit of a true token (OGD)"},
    "guard_rail.refresh": {"count": "number of steps", "drift": "drift of the weights"},
    "guard_rail.scope": {"global": "all layers", "layer": "each layer"},
    "guard_rail.apply_to": {"update": "the update", "gradient": "the gradient (as published)"},
    "guard_rail.optimizer_states": {
        "shared": "one for forget and retain gradient",
        "separate": "one each, the forget part projected",
    },
    "optimizer.name": {
        "adamw": "AdamW",
        "sgd": "SGD",
        "lion": "Lion",
        "sophia": "Sophia-G",
        "sophia_soul": "Sophia as SOUL ran it",
    },
    "schedule.decay": {"constant": "constant", "linear": "falls to 0"},
    "where.kind": {"lora": "an adapter (LoRA)", "full": "all weights"},
    "where.mask": {
        "none": "none: everything may change",
        "saliency": "rows with the largest forget gradient (SalUn)",
        "structure": "heads and filters (structure-aware)",
    },
    "lora.modules": {"auto": "query and value", "all-linear": "all linear"},
}
# What a choice of kind does, for the list that it is chosen from.
DOES: dict[str, dict[str, str]] = {
    "guard_rail.kind": {
        "none": "the update is not constrained",
        **{kind: rail.facts.summary for kind, rail in GUARD_RAILS.items()},
    },
    "optimizer.name": {
        "adamw": "every parameter's step is scaled by its own gradients",
        "sgd": "the gradient times the learning rate; momentum, if wanted",
        "lion": "sign steps; wants a learning rate 3 to 10 times smaller",
        "sophia": "steps divided by the curvature, estimated on sampled labels, and clipped",
        "sophia_soul": "the published code's form: nearly a sign step",
    },
    "where.kind": {
        "lora": "the weights stay, an adapter beside them is trained",
        "full": "no adapter: for models that fit into memory several times",
    },
    "where.mask": {
        "saliency": "all other rows stay fixed, under momentum and weight decay too",
        "structure": "those that matter more for forget than for retain texts",
    },
}
METHOD = "method"
# What the settings of the card's other rows are called.
OTHERS = {
    "data.target": "The word",
    "data.forget": "Forget texts",
    "data.retain": "Retain texts",
    "model.source": "The model",
    "model.earlier": "“earlier adapters”",
    "preset": "The recipe",
    "prompts": "The list of questions",
    "method.name": "“method”",
}
QUESTION = re.compile(r"prompts\[(\d+)\]\.text")


class Field(NamedTuple):
    """One setting. `path` is its place in a run file (`optimizer.learning_rate`, `method.beta`), `key` its field's."""

    path: str
    key: str
    name: str
    default: Any
    low: float | None
    high: float | None
    help: str
    choices: tuple[Any, ...]

    def text_of(self, value: Any) -> str:
        """A value in words."""
        return text_of(self.path, value, bool(self.choices))

    def offered(self, value: Any) -> str:
        """A choice with what it does."""
        does = DOES.get(self.path, {}).get(value, "")
        return f"{self.text_of(value)} · {does}" if does else self.text_of(value)

    def instead(self, here: Any, there: Any) -> str:
        """The difference of two runs in a few words: `here` instead of `there`."""
        if isinstance(here, bool):
            return self.name if here else f"no {self.name}"
        colon = ":" if isinstance(here, str) else ""
        return f"{self.name}{colon} {self.text_of(here)} instead of {self.text_of(there)}"

    @property
    def meaning(self) -> str:
        """Its help text and its range."""
        allowed = f"Range: {setting(self.low)} to {setting(self.high or math.inf)}." if self.low is not None else ""
        return " ".join(filter(None, (self.help, allowed)))


def text_of(path: str, value: Any, is_choice: bool = False) -> str:
    """A setting's value in words, by its path in the run file."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | float):
        return setting(value)
    return WORDS.get(path, {}).get(value, str(value).replace("_", " ") if is_choice else str(value))


@lru_cache
def fields_of(method: str, rail: str = DEFAULT_RAIL) -> dict[str, Field]:
    """Every setting that is shown where these are chosen, by its path; the method's own settings first."""
    fields = [_field(METHOD, knob, f"{METHOD}.{method}") for knob in knobs(METHODS[method])]
    hints = {**typing.get_type_hints(RunConfig), "guard_rail": rail_settings(rail)}
    for section in NAMES:
        fields += [_field(section, knob, section) for knob in knobs(hints[section])]
    return {field.path: field for field in fields}


def _field(section: str, knob: Mapping[str, Any], place: str) -> Field:
    name = _name(section, knob["name"])
    path = f"{section}.{knob['name']}"
    facts = [knob.get("low"), knob.get("high"), knob.get("help", ""), tuple(knob.get("choices", ()))]
    return Field(path, f"card_set {place}.{knob['name']}", name, knob["default"], *facts)


def _name(section: str, name: str) -> str:
    return NAMES.get(section, {}).get(name, name.replace("_", " ").replace("stand ins", "stand-ins"))


def name_of(path: str) -> str:
    """What a setting is called on the card, by its path in the run file; the path where it is not there."""
    if question := QUESTION.fullmatch(path):
        return f"Question {int(question[1]) + 1}"
    section, _, name = path.partition(".")
    shown = section in NAMES or section == METHOD
    return OTHERS.get(path) or (f"“{_name(section, name)}”" if shown and name else path)


def value_of(config: RunConfig, path: str) -> Any:
    """What a config says at `section.name`."""
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


def unusual(config: Mapping[str, Any]) -> list[str]:
    """What a run does otherwise than most with its method: where it trains, mask, guard rail, optimizer, in words."""
    method = config.get("method", {}).get("name")
    method = method if method in METHODS else DEFAULT_METHOD
    usual, fields, parts = RunConfig.read({"method": {"name": method}}), fields_of(method), []
    for path in ("where.kind", "where.mask", "guard_rail.kind", "optimizer.name"):
        section, name = path.split(".")
        value = config.get(section, {}).get(name, value_of(usual, path))
        if value != value_of(usual, path):
            parts.append(f"no {fields[path].name}" if value == "none" else fields[path].text_of(value))
    return parts


# ------------------------------------------------------------------------------------------------------- drawing


def draw(field: Field, why_idle: str = "", options: Sequence[Any] | None = None, label: str = "") -> None:
    """The field; its value is the session's, put there before. `why_idle`: why it cannot be changed just now.

    `options`: those of its choices that go with the rest.
    """
    about: dict[str, Any] = {
        "key": field.key,
        "help": page.escaped(why_idle or field.meaning) or None,
        "disabled": bool(why_idle),
    }
    title = label or field.name[:1].upper() + field.name[1:]  # plain words: none of them is Markdown
    if isinstance(field.default, bool):
        st.toggle(title, **about)
    elif field.choices:
        shown = list(options if options is not None else field.choices)
        st.selectbox(title, shown, format_func=field.offered, **about)
    elif isinstance(field.default, str):
        present = st.session_state.get(field.key) or field.default
        usual = dict.fromkeys([*WORDS.get(field.path, {}), present])
        st.selectbox(title, list(usual), format_func=field.text_of, accept_new_options=True, **about)
    else:
        kind = type(field.default)
        if small(field):
            st.slider(title, kind(field.low), kind(field.high), step=1 if kind is int else 0.01, **about)
        else:
            tiny = 0 < field.default < 0.001
            look = {"step": 1} if kind is int else {"step": step_of(field), "format": "%e" if tiny else "%g"}
            # Without its range: the browser would keep what is beyond to itself, and the run begin with another value.
            # What stands beside Start names field, value and range. Emptied, it is what it was at first.
            st.number_input(title, value=None, **look, **about)


def small(field: Field) -> bool:
    """Whether a slider can reach every value of its range."""
    if field.low is None or field.high is None:
        return False
    if isinstance(field.default, int):
        return field.high - field.low <= 64
    return field.low in (0, 0.01) and field.high <= 1


def step_of(field: Field) -> float:
    """How far a click on plus or minus goes: a tenth of its usual size."""
    if not field.default:
        return 0.01 if (field.high or 0) <= 1 else 0.1
    return float(10.0 ** math.floor(math.log10(abs(field.default)) - (0 if field.default < 1e-2 else 1)))


def plain(field: Field, value: Any) -> Any:
    """A field's value in the type that a run file has; its default where it was emptied."""
    if value is None or value == "":
        return field.default
    if isinstance(field.default, bool):
        return bool(value)
    if isinstance(field.default, float) and not isinstance(value, str):
        return float(value)
    return value.strip() if isinstance(value, str) else value
