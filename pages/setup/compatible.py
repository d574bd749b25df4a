"""Which settings of the form go with the others: what is offered, what gives way, what does nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearn_core.guard_rails import GUARD_RAILS
from unlearn_core.settings.compatibility import why_not
from unlearn_core.settings.run_config import RunConfig

RAIL_FIELDS = {kind: rail.facts.settings for kind, rail in GUARD_RAILS.items()}
# What gives way, in this order, where two choices exclude each other.
GIVES_WAY = (("guard_rail", "rows", "group"), ("guard_rail", "apply_to", "update"), ("where", "mask", "none"))


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The config with these values, path -> value; whether they go together is not checked."""
    by_section: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, name = path.split(".")
        by_section.setdefault(section, {})[name] = value
    return replace(config, **{s: replace(getattr(config, s), **given) for s, given in by_section.items()})


def settled(config: RunConfig) -> RunConfig:
    """The config after what has to give way has given way; unchanged where that does not help."""
    facts = config.method.facts
    ways = [*GIVES_WAY, ("guard_rail", "kind", facts.rails[0]), ("where", "kind", facts.where[0])]
    for section, name, value in ways:
        why = why_not(config)
        if not why:
            break
        if why != why_not(trial := with_values(config, {f"{section}.{name}": value})):
            config = trial
    return config


def settled_for(path: str, value: Any, config: RunConfig) -> RunConfig:
    """The config with this choice; of the others, those give way that can without being noticed much."""
    trial = with_values(config, {path: value})
    for section, name, usual in GIVES_WAY:
        if why_not(trial) and path != f"{section}.{name}":
            trial = with_values(trial, {f"{section}.{name}": usual})
    return trial


def options(path: str, choices: Sequence[Any], config: RunConfig) -> tuple[list[Any], dict[Any, str]]:
    """(the choices that go with the rest, the others with the reason)."""
    anyway = why_not(config)  # what does not go as it is, is told beside Start, and is no reason against any choice
    reasons = {value: why_not(settled_for(path, value, config)) for value in choices}
    reasons = {value: "" if why == anyway else why for value, why in reasons.items()}
    return [v for v, why in reasons.items() if not why], {v: why for v, why in reasons.items() if why}


def belongs(path: str, config: RunConfig) -> bool:
    """Whether a setting means anything beside the others."""
    section, name = path.split(".")
    facts = config.method.facts
    if section == "guard_rail":
        return name == "kind" or name in RAIL_FIELDS.get(config.guard_rail.kind, ())
    if section == "optimizer" or path in ("schedule.decay", "schedule.warmup", "where.mask", "where.share"):
        return bool(facts.trains)
    return section != "lora" or config.where.kind == "lora"


def idle(path: str, config: RunConfig) -> str:
    """Why a setting that belongs here has no effect beside the others; empty where it has one."""
    rail = config.guard_rail
    return {
        "guard_rail.groups": "Only where a direction stands for a group of samples." * (rail.rows != "group"),
        "guard_rail.every": "Directions are renewed when weights have moved." * (rail.refresh != "count"),
        "guard_rail.drift": "Directions are renewed every few steps." * (rail.refresh != "drift"),
        "optimizer.momentum": "Only SGD has it as a setting." * (config.optimizer.name != "sgd"),
        "where.share": "Nothing is held fixed." * (config.where.mask == "none"),
        "as_run.leftover_gradients": "Only with the retain subspace as guard rail." * (rail.kind != "retain_subspace"),
    }.get(path, "")


def because(why: str) -> str:
    """The reason in a refusal, without the settings' names: `a is 'x' and b is 'y': reason. Way out.` -> `reason.`"""
    _, colon, rest = why.partition(": ")
    return f"{(rest if colon else why).split('. ')[0].rstrip('.')}."
