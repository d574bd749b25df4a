"""Which settings go together: every pair of choices is accepted, or refused with a way out that works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import chain, combinations, product
from typing import Any

import pytest

from unlearn_core.methods import METHODS
from unlearn_core.settings.compatibility import (
    UNUSED,
    broken,
    check,
    choices_at,
    fix_of,
    refusals,
    rules_for,
    settle,
    unused,
    value_at,
    with_values,
)
from unlearn_core.settings.errors import ConfigError, written
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import RAILS, Rule
from unlearn_core.world import TARGET

COUNTED = (
    "where.kind", "where.mask", "optimizer.name", "model.four_bit", "model.gradient_checkpointing",
    "as_run.leftover_gradients", "as_run.padding_trained", "data.everything",
)  # fmt: skip
VALUES: dict[str, tuple[Any, ...]] = {
    "model.source": ("bundled", "bundled-reference", "some/model"),
    "model.adapter": ("", "a"),
    "model.earlier": ((), ("b", "c")),
    "method.negate": (0.0, 3.0),
    "data.stand_ins": ((), ("zorblick", TARGET)),
}


def start(name: str) -> RunConfig:
    return RunConfig.from_dict({"method": {"name": name}})


def counted(run: RunConfig) -> list[str]:
    """The settings whose values are counted, those of the method and of the guard rail among them."""
    own = {f"{name}.{e.name}": e for name in ("method", "guard_rail") for e in fields(getattr(run, name))}
    return [*COUNTED, *(path for path, e in own.items() if e.metadata["choices"] or isinstance(e.default, bool))]


def options(run: RunConfig) -> dict[str, tuple[Any, ...]]:
    """Path -> values of the settings whose pairs are tried."""
    choices = {path: choices_at(run, path) for path in counted(run)} | VALUES
    if not any(entry.name == "negate" for entry in fields(run.method)):
        del choices["method.negate"]
    return choices


def pairs(run: RunConfig) -> Iterator[RunConfig]:
    """The run with every pair of values of two settings. Each guard rail has settings of its own."""
    choices = options(run)
    kinds = choices.pop("guard_rail.kind")
    for kind in kinds:
        railed = with_values(run, {"guard_rail.kind": kind})
        for path, values in options(railed).items():
            yield from (with_values(railed, {path: value}) for value in values)
    for (path, values), (other, others) in combinations(choices.items(), 2):
        for value, second in product(values, others):
            yield with_values(run, {path: value, other: second})


def refusal(run: RunConfig, read: bool = False) -> ConfigError | None:
    """Of a run file's check; `read`: of reading its plain values as a whole, which takes far longer."""
    try:
        check(run)
        assert not read or RunConfig.from_dict(run.to_dict()) == run
    except ConfigError as error:
        return error
    return None


def is_a_full_answer(error: ConfigError, run: RunConfig, fix: dict[str, Any]) -> bool:
    """It names at least two settings with their values, the reason and what to set to which value."""
    named = all(value_at(run, path) == value and path in str(error) for path, value in error.settings.items())
    ways = all(f"{path} to {written(value)}" in error.fix for path, value in fix.items())
    return len(error.settings) > 1 and named and ways and str(error).endswith(f"{error.reason}. {error.fix}.")


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_pair_of_settings_is_accepted_or_refused_with_a_way_out_that_works(name):
    for pair in pairs(start(name)):
        run, mended = pair, 0
        while error := refusal(run):
            rule = next(broken(run))
            fix = dict(fix_of(rule, run))
            assert is_a_full_answer(error, run, fix), str(error)
            assert set(error.settings) == set(rule.fields) and error.reason == rule.because
            run, mended = with_values(run, fix), mended + 1
            assert all(other is not rule for other in broken(run)) and mended < 6, f"{pair.to_dict()}: {error}"


@pytest.mark.slow
def test_no_rule_stands_there_in_vain():
    """Each is the first that some pair breaks."""
    first = {id(next(broken(run), None)) for name in METHODS for run in pairs(start(name))}
    runs = [with_values(start(name), {"guard_rail.kind": kind}) for name in METHODS for kind in RAILS]
    every: list[Rule] = list(chain.from_iterable(map(rules_for, runs)))
    assert {rule.because for rule in every if id(rule) not in first} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_choice_is_offered_where_it_goes_together_and_refused_with_a_reason_where_it_does_not(name):
    run = start(name)
    for path in counted(run):
        refused = refusals(run, path)
        assert value_at(run, path) not in refused
        for choice in choices_at(run, path):
            chosen = settle(with_values(run, {path: choice}), path)
            assert value_at(chosen, path) == choice
            assert (refusal(chosen, read=True) is None) is (choice not in refused)
        for error in refused.values():
            assert path in error.settings and error.reason and error.fix and "." not in error.reason


def test_what_gives_way_is_what_the_rule_says():
    run = with_values(start("npo"), {"guard_rail.kind": "retain_subspace", "guard_rail.rows": "logit"})
    assert "one_sided" not in refusals(run, "guard_rail.kind")
    assert settle(with_values(run, {"guard_rail.kind": "one_sided"}), "guard_rail.kind").guard_rail.rows == "group"
    one_sided = with_values(run, {"guard_rail.kind": "one_sided", "guard_rail.rows": "group"})
    assert set(refusals(one_sided, "guard_rail.rows")) == {"logit"}
    assert set(refusals(with_values(run, {"where.kind": "full"}), "guard_rail.kind")) == {
        "null_space",
        "earlier_adapters",
    }


def test_a_run_that_cannot_be_as_it_is_still_offers_what_it_has():
    run = with_values(start("npo"), {"where.kind": "full", "model.four_bit": True, "where.mask": "structure"})
    assert refusals(run, "where.kind") == refusals(run, "model.four_bit") == {}
    assert set(refusals(run, "where.mask")) == {"saliency"}


@pytest.mark.parametrize("name", ["npo", "ssd", "era"])
def test_a_setting_without_effect_has_a_reason_and_no_other_has(name):
    run = start(name)
    trains = METHODS[name].facts.trains
    assert (unused(run, "optimizer.learning_rate") is None) is trains
    assert (unused(run, "lora.rank") is None) is (run.where.kind == "lora")
    assert unused(run, "schedule.steps") is unused(run, "guard_rail.kind") is None
    rows = with_values(run, {"guard_rail.kind": "retain_subspace", "guard_rail.rows": "sample"})
    assert unused(rows, "guard_rail.groups") and unused(rows, "guard_rail.drift")
    assert unused(rows, "guard_rail.every") is unused(rows, "guard_rail.batches") is None
    for entry in UNUSED:
        assert entry.because.endswith(".") and all(value_at(run, path) is not None for path in entry.fields)
