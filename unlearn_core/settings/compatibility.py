"""Which settings go together: one table of rules, read by the run-file check, the start form and the tests.

A method's own rules stand in its file (`rules`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from unlearn_core.settings.discovery import plugins
from unlearn_core.settings.errors import ConfigError, written
from unlearn_core.settings.sections import GuardRailSettings, LoraSettings, OptimizerSettings, Rule, Sections

Run = TypeVar("Run", bound=Sections)

OF_INPUTS = ("null_space", "earlier_adapters")  # guard rails that constrain an adapter by its layers' inputs

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
        because="the projection would take away what the method itself does",
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
        when=lambda run: run.guard_rail.kind in OF_INPUTS and run.where.kind == "full",
        fields=("guard_rail.kind", "where.kind"),
        because="this guard rail constrains the inputs that an adapter reads, and there is no adapter",
        fix={"where.kind": "lora"},
        or_else="choose another guard rail",
    ),
    Rule(
        when=lambda run: run.guard_rail.kind in OF_INPUTS and run.guard_rail.apply_to == "gradient",
        fields=("guard_rail.kind", "guard_rail.apply_to"),
        because="this guard rail holds for the weights themselves, whatever the optimizer does",
        fix={"guard_rail.apply_to": "update"},
        automatic=True,
    ),
    Rule(
        when=lambda run: run.guard_rail.kind == "earlier_adapters" and not run.model.earlier,
        fields=("guard_rail.kind", "model.earlier"),
        because="there are no earlier adapters to stay orthogonal to",
        fix={"guard_rail.kind": "none"},
        or_else="name the folders of earlier adapters in model.earlier",
    ),
    Rule(
        when=lambda run: run.guard_rail.kind == "one_sided" and run.guard_rail.rows == "logit",
        fields=("guard_rail.kind", "guard_rail.rows"),
        because="the gradient of a logit has no harmful side",
        fix={"guard_rail.rows": "group"},
        or_else="set guard_rail.kind to 'retain_subspace'",
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
        when=lambda run: run.as_run.leftover_gradients and run.guard_rail.kind != "retain_subspace",
        fields=("as_run.leftover_gradients", "guard_rail.kind"),
        because="the gradient that is left over is that of a refresh of the retain subspace",
        fix={"as_run.leftover_gradients": False},
    ),
)


def rules_for(run: Sections) -> tuple[Rule, ...]:
    """All rules for a run, in the order in which they are checked."""
    return (*BEFORE_METHOD, *run.method.rules, *AFTER_METHOD)


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
    ways = [f"set {path} to {written(value)}" for path, value in fix_of(rule, run).items()]
    fix = " or ".join([" and ".join(ways), rule.or_else] if rule.or_else else [" and ".join(ways)])
    return ConfigError(
        rule.because,
        field=first,
        value=value_at(run, first),
        fix=fix[:1].upper() + fix[1:],
        others={path: value_at(run, path) for path in others},
    )


def fix_of(rule: Rule, run: Sections) -> Mapping[str, Any]:
    """Path -> value with which the rule's settings go together."""
    return rule.fix(run) if callable(rule.fix) else rule.fix


def settle(run: Run, chosen: str = "") -> Run:
    """The run with every fix applied that the start form applies by itself; the setting `chosen` stays as it is."""
    for rule in rules_for(run):
        if rule.automatic and rule.when(run) and chosen not in (fix := fix_of(rule, run)):
            run = with_values(run, fix)
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
    """The run with other values, path -> value; whether they go together is not checked."""
    for field, value in values.items():
        section, _, name = field.partition(".")
        run = replace(run, **{section: replace(getattr(run, section), **{name: value})})
    return run


# ------------------------------------------------------------------------------------------ settings without effect


@dataclass(frozen=True)
class Unused:
    """Settings that have no effect in some runs. `hidden`: the start form leaves them out; else it disables them."""

    when: Callable[[Sections], bool]
    fields: tuple[str, ...]
    because: str
    hidden: bool = False


def _read_by(kind: str) -> tuple[str, ...]:
    """The fields of the section that a guard rail reads, as its own file says."""
    read: tuple[str, ...] = () if kind == "none" else plugins("guard_rails")[kind].facts.settings
    return read


def _unread(name: str) -> Unused:
    return Unused(
        when=lambda run: name not in _read_by(run.guard_rail.kind),
        fields=(f"guard_rail.{name}",),
        because="This guard rail has no such setting.",
        hidden=True,
    )


UNUSED = (
    *(_unread(entry.name) for entry in fields(GuardRailSettings) if entry.name != "kind"),
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
        when=lambda run: run.guard_rail.rows != "group",
        fields=("guard_rail.groups",),
        because="Only where a direction stands for a group of samples.",
    ),
    Unused(
        when=lambda run: run.guard_rail.refresh != "count",
        fields=("guard_rail.every",),
        because="Directions are renewed when weights have moved.",
    ),
    Unused(
        when=lambda run: run.guard_rail.refresh != "drift",
        fields=("guard_rail.drift",),
        because="Directions are renewed every few steps.",
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
    return next((entry for entry in UNUSED if field in entry.fields and entry.when(run)), None)


def why_not(run: Sections) -> str:
    """The first broken rule in a sentence; empty where the settings go together."""
    return next((str(error_of(rule, run)) for rule in broken(run)), "")
