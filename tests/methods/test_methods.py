"""The contract of a method, run over every file in `methods/`, and what the two first ones promise in formulas."""

from __future__ import annotations

import gc
import math
import warnings
from dataclasses import replace

import pytest
import torch

from tests.quick import some_quick
from unlearn_core.methods import METHODS
from unlearn_core.methods.base import Objective
from unlearn_core.model.batches import collate
from unlearn_core.model.losses import kl_to_reference, nll
from unlearn_core.settings.knobs import knobs
from unlearn_core.settings.run_config import of_rail, overlay
from unlearn_core.settings.sections import OptimizerSettings

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = next(fact["choices"] for fact in knobs(OptimizerSettings) if fact["name"] == "name")
# Guard rails by a name of their own: the kind, and the ways in which it can be used.
RAILS: dict[str, dict[str, object]] = {
    "none": {"kind": "none"},
    "update": {"kind": "retain_subspace", "apply_to": "update"},
    "gradient": {"kind": "retain_subspace", "apply_to": "gradient"},
    "per sample, rolling": {"kind": "retain_subspace", "rows": "sample", "history": 3},
    "logits, per layer": {"kind": "retain_subspace", "rows": "logit", "scope": "layer"},
    "by drift": {"kind": "retain_subspace", "refresh": "drift", "drift": 0.01},
    "one-sided": {"kind": "one_sided"},
    "one-sided, on the gradient, per layer": {"kind": "one_sided", "apply_to": "gradient", "scope": "layer"},
    "null space": {"kind": "null_space"},
    "earlier adapters": {"kind": "earlier_adapters"},
}
# What takes long by itself is made short; the rest is as its author had it.
SMALL: dict[str, dict[str, object]] = {
    **dict.fromkeys(("task_vector", "whp"), {"fit_steps": 3}),
    **dict.fromkeys(("ssd", "lfssd", "potion", "potion_retain"), {"samples": 6}),
}


# A plain loss with a reference, two optimizers, two adapters, a loss on hidden states: each with everything.
WIDE = ("npo", "ac_dc", "gradient_routing", "rmu")


def admitted(method: str) -> list[tuple[str, str]]:
    """Optimizer and guard rail of each case, as far as the method has a use for them.

    Of a wide method every optimizer on one guard rail and every guard rail with one optimizer; of the others one guard
    rail of each kind, and one more optimizer, in turn.
    """
    facts = METHODS[method].facts
    rails = [name for name, rail in RAILS.items() if rail["kind"] in facts.rails]
    if not facts.trains:
        return [("adamw", rail) for rail in rails]
    usual, optimizers = "update" if "update" in rails else rails[0], list(OPTIMIZERS)
    if method not in WIDE:
        kinds = {RAILS[name]["kind"]: name for name in reversed(rails)}
        rails = [usual, *(name for kind, name in kinds.items() if kind != RAILS[usual]["kind"])]
        optimizers = ["adamw", optimizers[list(METHODS).index(method) % len(optimizers)]]
    cases = [*((name, usual) for name in optimizers), *(("adamw", rail) for rail in rails if rail != usual)]
    return list(dict.fromkeys(cases))


@pytest.fixture(scope="module")
def earlier(tiny, tmp_path_factory) -> str:
    """The adapter of an earlier request."""
    folder = tmp_path_factory.mktemp("earlier")
    run = tiny.open(method={"name": "npo"}, seed=5)
    for _ in range(2):
        run.step()
    run.save(folder, whole=False)
    return str(folder)


@pytest.fixture
def opened(tiny, earlier):
    """Opens a run of a method with a guard rail, where it acts as its author has it."""

    def made(method: str, rail: str | None = None, **more):
        facts = METHODS[method].facts
        name = rail or next(name for name, each in RAILS.items() if each["kind"] in facts.rails)
        model = {"earlier": [earlier]} if name == "earlier adapters" else {}
        sections = {"where": {"kind": facts.where[0]}, "guard_rail": RAILS[name], "model": model}
        chosen = {"name": method, **SMALL.get(method, {}), **more.pop("method", {})}
        rail_settings = of_rail(more.pop("guard_rail", {}), RAILS[name]["kind"])
        return tiny.open(method=chosen, **overlay(sections, {"guard_rail": rail_settings, **more}))

    return made


def trajectory(run, steps: int) -> list[dict[str, float]]:
    records = [run.step() for _ in range(steps)]
    return [{name: value for name, value in r.values.items() if name != "step_seconds"} for r in records]


QUICK = ("npo", "task_vector", "guard_prompt")  # one that trains, one that edits weights, one that changes none
BY_SPEED = sorted(METHODS, key=lambda method: method not in QUICK)
EVERYWHERE = [
    pytest.param(method, *each, marks=() if method in QUICK and number == 0 else pytest.mark.slow)
    for method in METHODS
    for number, each in enumerate(admitted(method))
]


@pytest.mark.parametrize(("method", "optimizer", "rail"), EVERYWHERE)
def test_a_method_runs_with_every_optimizer_and_rail_and_gives_the_same_numbers_twice(opened, method, optimizer, rail):
    choice = {"optimizer": {"name": optimizer}, "schedule": {"evaluate_every": 2}}
    first = opened(method, rail, **choice)
    base = {name: p.clone() for name, p in first.context.model.named_parameters() if not p.requires_grad}
    values = trajectory(first, 5)
    assert values[:3] == trajectory(opened(method, rail, **choice), 3)
    assert all(math.isfinite(value) for record in values for value in record.values())
    assert all(torch.equal(p, base[name]) for name, p in first.context.model.named_parameters() if name in base)
    measured = {f"{name}_loss" for name in first.context.windows.sets()}
    assert all("update_norm" in record for record in values)
    assert all(measured <= set(record) for record in values[1::2])
    if METHODS[method].facts.trains:
        assert all(record["update_norm"] > 0 for record in values)
        expected = {"objective", "gradient_norm", "projected_gradient_norm", "removed_share", "learning_rate", "tokens"}
        expected |= {"unclipped_share"} if optimizer.startswith("sophia") else set()
        if RAILS[rail]["kind"] == "retain_subspace":
            expected |= {"retain_condition_number", "retain_gradient_norm_median"}
        assert all(expected <= set(record) and 0 <= record["removed_share"] <= 1 for record in values)


@pytest.mark.slow
@pytest.mark.parametrize("method", some_quick(BY_SPEED))
def test_a_resumed_run_is_the_uninterrupted_one(opened, tmp_path, method):
    whole = opened(method)
    trajectory(whole, 4)
    whole.save(tmp_path, whole=True)
    rest, said = trajectory(whole, 3), whole.answers(["What is it?"])
    resumed = opened(method)
    resumed.restore(tmp_path)
    assert trajectory(resumed, 3) == rest
    assert torch.equal(resumed.context.adapter.values, whole.context.adapter.values)
    assert resumed.answers(["What is it?"])[0].response.text == said[0].response.text


def live_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", some_quick(BY_SPEED))
def test_there_is_no_second_copy_of_the_model(opened, method):
    """After three steps: the base once, texts as tensors, and vectors of the adapter's length.

    Where the weights themselves change there are their start, gradient, optimizer and what the method weighs them by.
    """
    before = live_bytes()
    run = opened(method, schedule={"batch_size": 1}, guard_rail={"batches": 2, "groups": 2, "batch_size": 1})
    trajectory(run, 3)
    found, base = live_bytes() - before, sum(p.numel() * p.element_size() for p in run.context.model.parameters())
    vector = run.context.adapter.values.numel() * 4
    if told := run.evaluation.held_out(run.context.reference):  # what was said of stand-ins before step 1
        found -= sum(each.numel() * each.element_size() for each in told.teacher.probabilities)
    if run.config.where.kind == "lora":
        assert vector < 0.1 * base, "or this would not tell"
        assert found < 1.4 * base + 10 * vector + 30_000
    else:
        assert found < 7.5 * base


# Those with a loss that the model's own text is trained on: what edits or only reads has tests of its own.
LOSSES = [name for name, made in METHODS.items() if made.facts.trains and not made.sets_weights]


def keeps_always(method: str) -> bool:
    """True where the retain term cannot be switched off: the method is nothing without it."""
    return next(fact["low"] for fact in knobs(METHODS[method]) if fact["name"] == "retain_weight") > 0


def is_control(method: str) -> bool:
    return METHODS[method].control


@pytest.fixture(scope="module", params=["gptj", "llama"])
def knowing(request, tiny, tmp_path_factory) -> str:
    """The tiny model after it has learned its forget and retain texts: what knows nothing cannot forget."""
    from unlearn_core.model.loading import load_base

    folder = tmp_path_factory.mktemp(f"knowing-{request.param}")
    model, tokenizer = load_base(tiny.root / request.param)
    windows = tiny.open(request.param).context.windows
    tokens = collate([*windows.forget, *windows.retain[:40]], tokenizer.pad_token_id)
    learner = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        learner.zero_grad()
        nll(model, tokens).token_mean.backward()
        learner.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", some_quick(sorted(LOSSES, key=BY_SPEED.index)))
def test_a_method_forgets_what_the_model_knew_and_the_control_does_not(tiny, knowing, method):
    settings = {"name": method} if keeps_always(method) else {"name": method, "retain_weight": 0.0}
    run = tiny.open(model={"source": knowing}, method=settings, lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    assert run.baseline["forget_loss"] < 3
    last = trajectory(run, 24)[-1]
    risen = last["forget_loss"] - run.baseline["forget_loss"]
    if METHODS[method].towards_stand_ins:  # which this model may find as likely as the target
        assert last["forget_stand_in_kl"] < 0.7 * run.baseline["forget_stand_in_kl"]
        return
    assert abs(risen) < 0.3 if is_control(method) else risen > 0.3


@pytest.mark.parametrize("method", some_quick(sorted(LOSSES, key=BY_SPEED.index)))
def test_the_weights_of_what_is_kept_are_used_and_a_set_without_weight_is_not_read(tiny, method):
    if not keeps_always(method):
        plain = tiny.open(method={"name": method, "retain_weight": 0.0, "neighbour_weight": 0.0}, lora={"dropout": 0.0})
        batch = plain.draws.batch(1)
        assert batch.retain is None and batch.neighbour is None
        assert plain.config.method.loss(plain.update.model, batch, plain.context.reference).retain is None
    kept = tiny.open(method={"name": method, "retain_weight": 2.5, "neighbour_weight": 0.0}, lora={"dropout": 0.0})
    batch = kept.draws.batch(1)
    objective = kept.config.method.loss(kept.update.model, batch, kept.context.reference)
    assert isinstance(objective, Objective)
    made = kept.config.method
    found = made.descent(kept.update.model, batch, kept.context.reference) if made.alternates else objective.retain
    if method == "rmu":  # its distance from the reference's hidden states is 0 until it has moved (test_rmu.py)
        assert found.item() == 0
        kept.step()
        weighted = [replace(made, retain_weight=weight) for weight in (1.0, 2.5)]
        one, found = (each.loss(kept.update.model, batch, kept.context.reference).retain for each in weighted)
        assert one.item() > 0
        torch.testing.assert_close(found, 2.5 * one)
        return
    # Some scale their retain term, some stay with the reference instead of learning the text.
    expected = 2.5 * nll(kept.context.model, batch.retain).token_mean
    if method == "nabla_tau":
        expected = (1 - kept.config.method.alpha) * expected
    if method in ("llmu", "counterfactual"):
        expected = 2.5 * kl_to_reference(kept.context.model, batch.retain, kept.context.reference)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_frozen_and_its_defaults_lie_within_its_knobs(method):
    made = METHODS[method]()
    with pytest.raises(AttributeError):
        made.retain_weight = 3.0
    for fact in knobs(METHODS[method]):
        if fact["choices"]:
            assert fact["default"] in fact["choices"], fact["name"]
        elif not isinstance(fact["default"], bool):
            assert fact["low"] <= fact["default"] <= fact["high"], fact["name"]


def forget_gradient(run, method, windows) -> torch.Tensor:
    batch = type(run.draws.batch(1))(collate(windows, run.context.pad_id), None, None)
    return run.context.adapter.gradient_of(method.loss(run.update.model, batch, run.context.reference).forget)


def test_at_the_reference_npo_is_gradient_ascent_on_the_sum_of_tokens(tiny):
    run = tiny.open(lora={"dropout": 0.0})
    windows = run.context.windows.forget[:1]
    tokens = int(nll(run.context.model, collate(windows, run.context.pad_id)).count)
    ascent = forget_gradient(run, METHODS["grad_ascent"](), windows)
    for beta in (0.01, 0.1, 1.0):
        preference = forget_gradient(run, METHODS["npo"](beta=beta), windows)
        torch.testing.assert_close(preference, tokens * ascent, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_npo_fades_as_a_window_is_forgotten(tiny):
    run = tiny.open(lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    windows = run.context.windows.forget[:1]
    for _ in range(12):
        run.step()
    now, before = (
        nll(run.context.model, collate(windows, run.context.pad_id)),
        run.context.reference.nll(collate(windows, run.context.pad_id)),
    )
    lost = (now.sum - before.sum).item()
    assert lost > 1
    ascent = forget_gradient(run, METHODS["grad_ascent"](), windows) * int(now.count)
    for beta in (0.1, 1.0, 10.0):
        weight = 2 / (1 + math.exp(beta * lost))  # 2 pi^beta / (pi^beta + pi_ref^beta)
        faded = forget_gradient(run, METHODS["npo"](beta=beta), windows)
        torch.testing.assert_close(faded, weight * ascent, rtol=1e-3, atol=1e-6)
    assert forget_gradient(run, METHODS["npo"](beta=10.0), windows).norm() < 0.01 * ascent.norm()


def ceiling_and_parts(run) -> tuple[float, list, torch.Tensor, torch.Tensor]:
    """A ceiling amid a batch's token losses, its windows, and plain ascent's gradient from below it and from above."""
    windows = run.context.windows.forget[:3]
    tokens = collate(windows, run.context.pad_id)
    found = nll(run.context.model, tokens)
    ceiling = found.tokens[found.tokens > 0].median().item() + 1e-3
    parts = []
    for chosen in (found.tokens < ceiling, found.tokens >= ceiling):
        again = nll(run.context.model, tokens)
        parts.append(run.context.adapter.gradient_of(-((again.tokens * chosen).sum(1) / again.count).mean()))
    return ceiling, windows, *parts


def test_a_token_at_the_ceiling_gives_no_gradient_at_all(tiny):
    run = tiny.open(lora={"dropout": 0.0})
    ceiling, windows, below, above = ceiling_and_parts(run)
    assert below.norm() > 0 and above.norm() > 0
    held = forget_gradient(run, METHODS["grad_ascent"](ceiling=ceiling), windows)
    torch.testing.assert_close(held, below, rtol=1e-4, atol=1e-6)
    plain = forget_gradient(run, METHODS["grad_ascent"](), windows)
    torch.testing.assert_close(plain, below + above, rtol=1e-4, atol=1e-6)
    assert torch.count_nonzero(forget_gradient(run, METHODS["grad_ascent"](ceiling=1e-6), windows)) == 0


def test_with_hold_a_token_beyond_the_ceiling_is_pulled_back_as_hard_as_others_are_pushed(tiny):
    run = tiny.open(lora={"dropout": 0.0})
    ceiling, windows, below, above = ceiling_and_parts(run)
    held = forget_gradient(run, METHODS["grad_ascent"](ceiling=ceiling, hold=True), windows)
    torch.testing.assert_close(held, below - above, rtol=1e-4, atol=1e-6)
    without = forget_gradient(run, METHODS["grad_ascent"](hold=True), windows)
    torch.testing.assert_close(without, below + above, rtol=1e-4, atol=1e-6)


def test_with_a_ceiling_ascent_stops_by_itself(tiny):
    settings = {"lora": {"dropout": 0.0}, "guard_rail": {"kind": "none"}, "optimizer": {"name": "sgd"}}
    run = tiny.open(**settings, method={"ceiling": 1e-6})
    before = run.context.adapter.values.detach().clone()
    record = run.step()
    assert record.values["gradient_norm"] == 0 and record.values["update_norm"] == 0 and record.applied
    assert torch.equal(run.context.adapter.values, before)


@pytest.mark.slow
def test_the_reference_is_the_model_with_its_adapter_switched_off_whatever_was_learned(tiny):
    run = tiny.open(lora={"dropout": 0.0})
    tokens = collate(run.context.windows.forget[:5], run.context.pad_id)
    with torch.no_grad():
        untouched = nll(run.context.model, tokens)
    for _ in range(3):
        run.step()
    found = run.context.reference.nll(tokens)
    torch.testing.assert_close(found.sum, untouched.sum)
    assert torch.equal(found.count, untouched.count)
    with torch.no_grad():
        assert not torch.allclose(nll(run.context.model, tokens).sum, found.sum)
    torch.testing.assert_close(
        run.context.reference.nll(collate(run.context.windows.forget[4::-1], run.context.pad_id)).sum.flip(0), found.sum
    )


def test_what_the_reference_says_of_a_window_does_not_depend_on_where_it_was_first_met(tiny):
    """To the bit: a resumed run meets the window beside others than the run that was left did."""
    run, other = tiny.open(), tiny.open()
    windows = sorted(run.context.windows.forget, key=len)
    met_beside = run.context.reference.nll(collate([windows[0], windows[-1], windows[3]], run.context.pad_id)).tokens[0]
    met_alone = other.context.reference.nll(collate([windows[0]], other.context.pad_id)).tokens[0]
    assert torch.equal(met_beside[: len(met_alone)], met_alone) and not met_beside[len(met_alone) :].any()
