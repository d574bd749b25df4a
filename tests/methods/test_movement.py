"""Whatever moves the weights in a step: it has passed the guard rail, and `update_norm` counts it. For every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.methods.test_methods import SMALL, earlier, opened  # noqa: F401
from unlearn_core.methods import METHODS
from unlearn_core.settings.sections import separate_states

pytestmark = pytest.mark.usefixtures("one_thread")

# Guard rails that promise something of the update, by the names of test_methods.RAILS, and more of their settings.
RAILS: dict[str, tuple[str, dict[str, object]]] = {
    "span": ("update", {"rows": "sample"}),
    "span, each layer": ("update", {"scope": "layer"}),
    "span, separate states": ("update", {"optimizer_states": "separate"}),
    "one-sided": ("one-sided", {}),
    "one-sided, separate states": ("one-sided", {"optimizer_states": "separate", "scope": "layer"}),
    "null space": ("null space", {"energy": 0.8}),
    "earlier adapters": ("earlier adapters", {}),
}
QUICK = {("ac_dc", "null space"), ("ac_dc", "span"), ("npo", "span, separate states")}


def cases() -> Iterator[object]:
    """Every method with every guard rail that it can be used with; of those that admit none, the plain run."""
    for method, kind in METHODS.items():
        names = [name for name, (rail, _) in RAILS.items() if kind_of(rail) in kind.facts.rails]
        for name in names or ["none"]:
            yield pytest.param(method, name, marks=() if (method, name) in QUICK else pytest.mark.slow)


def kind_of(rail: str) -> str:
    return {"update": "retain_subspace"}.get(rail, rail.replace("-", "_").replace(" ", "_"))


def watched(run) -> list[torch.Tensor]:
    """Copies of what the guard rail lets through for the retain term, step by step, as it is asked."""
    passed: list[torch.Tensor] = []

    def copying(hook: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
        def asked(*given: object) -> torch.Tensor | None:
            result = hook(*given)
            if result is not None:
                passed.append(result.clone())
            return result

        return asked

    rail = run.update.rail
    rail.project_retain, rail.retain_step = copying(rail.project_retain), copying(rail.retain_step)
    return passed


def inside(space, vector: torch.Tensor) -> float:
    """Length of the part of a vector in a span, by an orthonormal basis of its rows that is made here, by QR."""
    basis, _ = torch.linalg.qr(space.rows.double().T)
    return (basis.T @ vector.double()).norm().item()


def kept(run, change: torch.Tensor, retain: torch.Tensor) -> None:
    """Asserts what the run's guard rail promises of the change of the weights; `retain`: the retain term's part."""
    rail, length = run.update.rail, change.norm().item()
    match run.config.guard_rail.kind:
        case "retain_subspace":
            for name, space in rail.spaces.items():
                part = rail.spans[name]
                assert inside(space, change[part] - retain[part]) < 1e-5 * length
        case "one_sided":
            for part in rail.spans.values():
                harm = change[part].double() @ rail.mean[part].double()
                assert harm < 1e-6 * length * rail.mean[part].norm()
        case _:
            for name, part in rail.parts.items():
                basis = rail.bases[name.partition(".lora_")[0]]
                along = (change[part].view(-1, len(basis)) @ basis).norm()
                # The sum of A and its change rounds, to a share of A.
                assert along < 1e-6 * run.context.adapter.values[part].norm()


@pytest.mark.parametrize(("method", "rail"), list(cases()))
def test_the_whole_change_of_a_step_keeps_the_promise_and_is_counted(opened, method, rail):  # noqa: F811
    name, more = RAILS.get(rail, ("none", {}))
    run = opened(method, name, guard_rail=more, lora={"dropout": 0.0})
    passed = watched(run) if run.update.rail else []
    for _ in range(3):
        passed.clear()
        before = run.context.adapter.values.detach().clone()
        record = run.step()
        change = run.context.adapter.values.detach() - before
        assert record.values["update_norm"] == pytest.approx(change.double().norm().item(), rel=1e-5)
        if run.update.rail:
            assert change.any()
            kept(run, change, sum(passed, torch.zeros_like(change)))


def test_methods_that_move_the_weights_by_themselves_admit_no_guard_rail():
    """Nothing could keep what `apply_step` does off anything."""
    assert all(kind.facts.rails == ("none",) for kind in METHODS.values() if kind.sets_weights)
    assert SMALL.keys() <= METHODS.keys() and any(kind.sets_weights for kind in METHODS.values())


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_the_separate_forget_update_is_orthogonal_and_the_retain_update_is_whole(tiny, name):
    """Against two of torch's own optimizers (or ours), one for each gradient."""
    run = tiny.open(
        method={"name": "grad_diff", "retain_weight": 2.0}, guard_rail={"optimizer_states": "separate", "every": 1},
        optimizer={"name": name, "learning_rate": 1e-3, "max_gradient_norm": 0.0, "weight_decay": 0.5},
        lora={"dropout": 0.0},
    )  # fmt: skip
    assert separate_states(run.config)
    twin = torch.nn.Parameter(run.context.adapter.values.detach().clone())
    kind = type(run.update.optimizer)
    forget, retain = (kind([twin], lr=1e-3, weight_decay=decay) for decay in (0.5, 0.0))  # weights decay once
    for number in range(1, 5):
        began = run.context.adapter.values.detach().clone()
        objective = run.method.loss(run.update.model, run.draws.batch(number), run.context.reference)
        parts = []
        for optimizer, loss in ((forget, objective.forget), (retain, objective.retain)):
            twin.data.copy_(began)
            twin.grad = run.context.adapter.gradient_of(loss)
            optimizer.step()
            parts.append(twin.detach() - began)
        record = run.step()
        change = run.context.adapter.values.detach() - began
        space = run.update.rail.space
        removed = 1 - space.project_out(parts[0]).norm() / parts[0].norm()
        assert record.values["removed_share"] == pytest.approx(removed.item(), rel=1e-3)
        torch.testing.assert_close(change, space.project_out(parts[0]) + parts[1], rtol=1e-3, atol=1e-6)
        assert inside(space, change - parts[1]) < 1e-4 * change.norm() < 0.1 * inside(space, parts[1])
