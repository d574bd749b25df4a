"""Compatibility of settings: one table of rules, read by the run-file check, the start form and the tests.

The own rules of a method and of a guard rail stand in their files (`rules`, `unused`). Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import LoraSettings, OptimizerSettings, Rule, Sections, Unused, as_rail

Run = TypeVar("Run", bound=Sections)


def unfit_stand_ins(run: Sections) -> tuple[str, ...]:
    """The names given by hand that are empty or have the target in them."""
    target = re.compile(rf"\b{re.escape(run.data.target)}\b", re.IGNORECASE)
    return tuple(name for name in run.data.stand_ins if not name.strip() or target.search(name))


BEFORE_METHOD = (
    Rule(
        when=lambda run: run.guard_rail.kind not in run.method.facts.rails and not run.method.facts.trains,
        fields=("method.name", "guard_rail.kind"),
        because="the method takes no gradient steps, so there is no update to project",
        fix=lambda run: {"guard_rail.kind": run.method.facts.rails[0]},
        automatic=True,
    ),
    Rule(
        when=lambda run: run.guard_rail.kind not in run.method.facts.rails,
        fields=("method.name", "guard_rail.kind"),
        because="the projection would undo the change of the method itself",
        fix=lambda run: {"guard_rail.kind": run.method.facts.rails[0]},
        automatic=True,
    ),
    Rule(
        when=lambda run: not run.method.facts.trains and run.optimizer.name != OptimizerSettings.name,
        fields=("method.name", "optimizer.name"),
        because="the method takes no gradient steps, so there is nothing to optimize",
        fix={"optimizer.name": OptimizerSettings.name},
        automatic=True,
    ),
)
AFTER_METHOD = (
    Rule(
        when=lambda run: run.where.kind not in run.method.facts.where and run.where.kind == "lora",
        fields=("method.name", "where.kind"),
        because="the method damps weights, and a fresh adapter has none that matter",
        fix=lambda run: {"where.kind": run.method.facts.where[0]},
        automatic=True,
    ),
    Rule(
        when=lambda run: run.where.kind not in run.method.facts.where and run.method.facts.unlearns,
        fields=("method.name", "where.kind"),
        because="the method needs an adapter",
        fix=lambda run: {"where.kind": run.method.facts.where[0]},
        automatic=True,
    ),
    Rule(
        when=lambda run: run.where.kind not in run.method.facts.where,
        fields=("method.name", "where.kind"),
        because="the method is a control: it changes no weights",
        fix=lambda run: {"where.kind": run.method.facts.where[0]},
        automatic=True,
    ),
    Rule(
        when=lambda run: run.where.mask != "none" and not run.method.facts.trains,
        fields=("method.name", "where.mask"),
        because="the method takes no gradient steps, so there is nothing to mask",
        fix={"where.mask": "none"},
        automatic=True,
    ),
    Rule(
        when=lambda run: bool(run.model.adapter) and run.where.kind == "full",
        fields=("model.adapter", "where.kind"),
        because="an adapter is not part of the weights",
        fix=lambda run: {"where.kind": "lora"} if "lora" in run.method.facts.where else {"model.adapter": ""},
        or_else="merge the adapter into the weights and name that model in model.source",
    ),
    Rule(
        when=lambda run: bool(run.model.earlier) and run.where.kind == "full",
        fields=("model.earlier", "where.kind"),
        because="earlier adapters stay on beside a new adapter, and there is none",
        fix=lambda run: {"where.kind": "lora"} if "lora" in run.method.facts.where else {"model.earlier": ()},
    ),
    Rule(
        when=lambda run: run.model.four_bit and run.where.kind == "full",
        fields=("model.four_bit", "where.kind"),
        because="weights of 4 bits cannot be trained",
        fix={"model.four_bit": False},
    ),
    Rule(
        when=lambda run: run.model.four_bit and run.where.mask == "saliency",
        fields=("model.four_bit", "where.mask"),
        because="this mask needs gradients of the weights themselves",
        fix={"where.mask": "structure"},
        automatic=True,
    ),
    Rule(
        when=lambda run: bool(unfit_stand_ins(run)),
        fields=("data.stand_ins", "data.target"),
        because="a name with the target in it, or none at all, cannot stand for it",
        fix=lambda run: {"data.stand_ins": tuple(n for n in run.data.stand_ins if n not in unfit_stand_ins(run))},
    ),
    Rule(
        when=lambda run: run.as_run.leftover_gradients and run.guard_rail.kind != "retain_subspace",
        fields=("as_run.leftover_gradients", "guard_rail.kind"),
        because="the gradient that is left over is that of a refresh of the retain subspace",
        fix={"as_run.leftover_gradients": False},
    ),
)


def rules_for(run: Sections) -> tuple[Rule, ...]:
    """All rules for a run, in the order in which they are checked."""
    return (*BEFORE_METHOD, *run.method.rules, *AFTER_METHOD, *run.guard_rail.rules)


def broken(run: Sections) -> Iterator[Rule]:
    """The rules that a run's settings break."""
    return (rule for rule in rules_for(run) if rule.when(run))


def check(run: Sections) -> None:
    """Raises ConfigError for the first broken rule, with its fields, their values, the reason and the way out."""
    for rule in broken(run):
        raise error_of(rule, run)


def error_of(rule: Rule, run: Sections) -> ConfigError:
    """A broken rule as an error."""
    first, *others = rule.fields
    return ConfigError(
        rule.because,
        field=first,
        value=value_at(run, first),
        sets=fix_of(rule, run),
        fix=rule.or_else,
        others={path: value_at(run, path) for path in others},
    )


def fix_of(rule: Rule, run: Sections) -> Mapping[str, Any]:
    """Path -> value with which the rule's settings go together."""
    return rule.fix(run) if callable(rule.fix) else rule.fix


def settle(run: Run, chosen: str = "") -> Run:
    """The run with every fix applied that the start form applies by itself; the setting `chosen` stays as it is."""
    applied: list[Rule] = []
    while open_rules := [r for r in broken(run) if r.automatic and r not in applied and chosen not in fix_of(r, run)]:
        applied.append(open_rules[0])
        run = with_values(run, fix_of(open_rules[0], run))
    return run


def refusals(run: Sections, field: str) -> dict[Any, ConfigError]:
    """Choice -> why it cannot be chosen for a setting, of those that have choices. What a run has is never refused."""
    reasons = {}
    for choice in choices_at(run, field):
        trial = settle(with_values(run, {field: choice}), field)
        rule = next((rule for rule in broken(trial) if field in rule.fields), None)
        if rule and choice != value_at(run, field):
            reasons[choice] = error_of(rule, trial)
    return reasons


def choices_at(run: Sections, field: str) -> tuple[Any, ...]:
    """The values that a setting can have, where they are counted."""
    section, _, name = field.partition(".")
    (facts,) = (entry for entry in fields(getattr(run, section)) if entry.name == name)
    return (False, True) if isinstance(facts.default, bool) else tuple(facts.metadata["choices"])


def value_at(run: Sections, field: str) -> Any:
    """The value of a setting, by its path in the run file."""
    section, _, name = field.partition(".")
    return getattr(getattr(run, section), name)


def with_values(run: Run, values: Mapping[str, Any]) -> Run:
    """The run with other values, path -> value; whether they go together is not checked.

    Of another guard rail's settings, those that both have stay as they are.
    """
    if (kind := values.get("guard_rail.kind", run.guard_rail.kind)) != run.guard_rail.kind:
        run = replace(run, guard_rail=as_rail(run.guard_rail, kind))
    for field, value in values.items():
        section, _, name = field.partition(".")
        if field != "guard_rail.kind":
            run = replace(run, **{section: replace(getattr(run, section), **{name: value})})
    return run


# ------------------------------------------------------------------------------------------ settings without effect


UNUSED = (
    Unused(
        when=lambda run: not run.method.facts.trains,
        fields=(
            *(f"optimizer.{entry.name}" for entry in fields(OptimizerSettings)),
            *("schedule.decay", "schedule.warmup", "where.mask", "where.share"),
        ),
        because="This method takes no gradient steps.",
        hidden=True,
    ),
    Unused(
        when=lambda run: run.where.kind != "lora",
        fields=tuple(f"lora.{entry.name}" for entry in fields(LoraSettings)),
        because="There is no adapter.",
        hidden=True,
    ),
    Unused(
        when=lambda run: run.optimizer.name != "sgd",
        fields=("optimizer.momentum",),
        because="Only SGD has it as a setting.",
    ),
    Unused(
        when=lambda run: run.where.mask == "none",
        fields=("where.share",),
        because="There is no mask: everything may change.",
    ),
    Unused(
        when=lambda run: run.guard_rail.kind != "retain_subspace",
        fields=("as_run.leftover_gradients",),
        because="Only with the retain subspace as guard rail.",
    ),
)


def unused(run: Sections, field: str) -> Unused | None:
    """Why a setting has no effect in this run; None where it has."""
    known = (*UNUSED, *run.guard_rail.unused)
    return next((entry for entry in known if field in entry.fields and entry.when(run)), None)
