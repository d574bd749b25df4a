"""One optimizer state for forget and retain gradient, or one each: where they agree, and what bounds the first."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.quick import some_quick
from unlearn_core.methods import METHODS
from unlearn_core.methods.base import Objective
from unlearn_core.settings.compatibility import unused
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import separate_states

pytestmark = pytest.mark.usefixtures("one_thread")

SEPARATE = {"optimizer_states": "separate"}


@pytest.mark.parametrize("limit", some_quick([0.05, 0.0]))
@pytest.mark.parametrize("scope", some_quick(["global", "layer"]))
def test_with_plain_sgd_both_forms_are_equal_clipped_or_not(tiny, scope, limit):
    def after(states: str) -> tuple[list[float], torch.Tensor]:
        run = tiny.open(
            method={"name": "npo", "retain_weight": 2.0, "neighbour_weight": 0.5}, lora={"dropout": 0.0},
            guard_rail={"scope": scope, "optimizer_states": states},
            optimizer={"name": "sgd", "learning_rate": 0.2, "max_gradient_norm": limit},
        )  # fmt: skip
        norms = [run.step().values["gradient_norm"] for _ in range(5)]
        assert (run.update.retain_optimizer is None) is (states == "shared") and min(norms) > 0.05
        return norms, run.context.adapter.values.detach()

    (norms, shared), (same_norms, separate) = after("shared"), after("separate")
    assert norms == pytest.approx(same_norms, rel=1e-3)
    torch.testing.assert_close(shared, separate, rtol=1e-3, atol=1e-6)


def test_the_removed_share_is_that_of_the_projection_whatever_the_retain_term_adds_back(tiny):
    """By plain SGD: of the update along the sum of both gradients. A heavy retain term adds back more than is left."""
    run = tiny.open(
        method={"name": "grad_diff", "retain_weight": 50.0}, lora={"dropout": 0.0},
        guard_rail={"rows": "sample", "every": 1},
        optimizer={"name": "sgd", "learning_rate": 1e-3, "max_gradient_norm": 0.0},
    )  # fmt: skip
    for number in range(1, 4):
        objective = run.method.loss(run.update.model, run.draws.batch(number), run.context.reference)
        total = sum(run.context.adapter.gradient_of(loss) for loss in (objective.forget, objective.retain))
        removed = run.step().values["removed_share"]
        assert removed == pytest.approx(1 - (run.update.rail.project_gradient(total).norm() / total.norm()).item())
        assert removed > 0.01


@pytest.mark.parametrize("optimizer", some_quick(["adamw", "lion"]))
def test_the_shared_form_by_a_twin_of_the_optimizer(tiny, optimizer):
    """Outside the span the optimizer's own update; inside it the retain gradient, times |update| / |gradient|."""
    run = tiny.open(
        method={"name": "grad_diff", "retain_weight": 2.0}, lora={"dropout": 0.0},
        guard_rail={"rows": "sample", "every": 1},
        optimizer={"name": optimizer, "learning_rate": 1e-3, "max_gradient_norm": 0.5},
    )  # fmt: skip
    twin = torch.nn.Parameter(run.context.adapter.values.detach().clone())
    own = type(run.update.optimizer)([twin], lr=1e-3, weight_decay=0.0)
    for number in range(1, 5):
        began = run.context.adapter.values.detach().clone()
        objective = run.method.loss(run.update.model, run.draws.batch(number), run.context.reference)
        forget, retain = (run.context.adapter.gradient_of(loss) for loss in (objective.forget, objective.retain))
        total = (forget + retain).norm()
        twin.data.copy_(began)
        twin.grad = (forget + retain) * min(1, 0.5 / total.item())
        own.step()
        update, gain = twin.detach() - began, (twin.detach() - began).norm() / total
        run.step()
        basis, _ = torch.linalg.qr(run.update.rail.space.rows.double().T)
        change, update, retain = ((basis.T @ each.double(), each) for each in (
            run.context.adapter.values.detach() - began, update, retain,
        ))  # fmt: skip
        assert not 0.5e-3 < gain < 2e-3, "not the learning rate by chance"
        factor = min(gain.double(), update[1].norm() / retain[0].norm())
        torch.testing.assert_close(change[0], -factor * retain[0], rtol=1e-2, atol=1e-6)
        across = [(vector.double() - basis @ inside).float() for inside, vector in (change, update)]
        torch.testing.assert_close(*across, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def rail(tiny):
    run = tiny.open(guard_rail={"scope": "layer"})
    for _ in range(2):
        run.step()
    return run.update.rail


@given(seed=st.integers(0, 1000), gain=st.floats(1e-6, 1e12), longest=st.floats(1e-6, 1e3))
def test_what_the_shared_form_moves_inside_the_span_is_never_longer_than_the_update(rail, seed, gain, longest):
    gradient = torch.randn(len(rail.context.adapter.gradient), generator=torch.Generator().manual_seed(seed))
    step = rail.retain_step(gradient, gain, longest)
    inside = gradient - rail.project_gradient(gradient)
    assert step.norm() <= longest * (1 + 1e-4)
    assert rail.project_gradient(step).norm() <= 1e-4 * step.norm(), "it lies in the span"
    factor = min(gain, longest / inside.norm().item())
    torch.testing.assert_close(step, -factor * inside, rtol=1e-3, atol=1e-4 * factor)


@pytest.mark.parametrize("optimizer", some_quick(["adamw", "lion"]))
def test_where_forget_and_retain_gradient_cancel_a_step_is_as_long_as_ever(tiny, optimizer):
    """Their sum is a millionth of each; the optimizer's own step is no shorter for that."""
    run = tiny.open(
        method={"name": "grad_diff"}, optimizer={"name": optimizer, "learning_rate": 1e-3}, lora={"dropout": 0.0}
    )
    plain = type(run.method).loss

    def cancelling(model, batch, reference):
        forget, retain = (plain(run.method, model, batch, reference).retain for _ in range(2))
        return Objective(-(1 - 1e-6) * forget, retain)

    object.__setattr__(run.method, "loss", cancelling)
    own = 1e-3 * math.sqrt(run.context.adapter.values.numel())  # no entry moves by more than the learning rate
    for _ in range(4):
        assert run.step().values["update_norm"] <= math.sqrt(2) * own * (1 + 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_setting_is_shown_as_without_effect_exactly_where_it_has_none(method):
    for kind in set(METHODS[method].facts.rails) & {"retain_subspace", "one_sided"}:
        for apply_to in ("update", "gradient"):
            rail = {"kind": kind, "apply_to": apply_to, **SEPARATE}
            config = RunConfig.from_dict({"method": {"name": method}, "guard_rail": rail})
            assert separate_states(config) is (unused(config, "guard_rail.optimizer_states") is None)
            assert not (separate_states(config) and (apply_to == "gradient" or method == "ac_dc"))


def test_without_a_retain_term_there_is_one_state_and_the_same_run(tiny):
    runs = [tiny.open(guard_rail=more) for more in ({}, SEPARATE)]
    values = [[run.step().values["update_norm"] for _ in range(3)] for run in runs]
    assert values[0] == values[1] and list(runs[1].update.optimizers()) == ["optimizer"]
    assert torch.equal(*(run.context.adapter.values for run in runs))


def test_a_loss_that_is_not_finite_in_the_retain_term_alone_is_caught(tiny):
    run = tiny.open(method={"name": "grad_diff"}, guard_rail=SEPARATE)
    run.step()
    before, plain = run.context.adapter.values.detach().clone(), type(run.context.adapter).gradient_of
    calls = []

    def spoilt(adapter, loss):
        calls.append(loss)
        gradient = plain(adapter, loss)
        return gradient * float("nan") if len(calls) == 5 else gradient  # three rows, forget, retain

    run.context.adapter.gradient_of = spoilt.__get__(run.context.adapter)
    record = run.step()
    assert len(calls) == 5 and not record.applied and record.verdict.rule == "not_finite"
    assert torch.equal(run.context.adapter.values, before)
