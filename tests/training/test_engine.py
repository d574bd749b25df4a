"""The engine by theorem: what is applied is orthogonal to what is protected, and everything else stays as it was."""

from __future__ import annotations

import itertools
import math
import shutil

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.quick import some_quick
from unlearn_core.metrics.shared.evaluate import evaluate, values_of
from unlearn_core.metrics.shared.windows import EvaluationWindows
from unlearn_core.model.batches import EVALUATED, collate, spread
from unlearn_core.model.losses import nll
from unlearn_core.model.window import Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.training.update import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = {
    "adamw": {"name": "adamw"},
    "adamw with decay": {"name": "adamw", "weight_decay": 0.1},
    "adamw, never clipped": {"name": "adamw", "max_gradient_norm": 0.0},
    "sgd": {"name": "sgd", "learning_rate": 0.3},
    "sgd with momentum and decay": {"name": "sgd", "learning_rate": 0.3, "momentum": 0.9, "weight_decay": 0.1},
    "sgd, clipped hard": {"name": "sgd", "learning_rate": 3.0, "max_gradient_norm": 0.01},
}


def change(run) -> torch.Tensor:
    """What one step does to the adapter's vector."""
    before = run.context.adapter.values.detach().clone()
    run.step()
    return run.context.adapter.values.detach() - before


def leak(run, vector: torch.Tensor) -> float:
    """The share of `vector` that lies in the protected span, 0 to 1."""
    basis = run.update.rail.space.whitening.T @ run.update.rail.space.rows.double()
    return ((basis @ vector.double()).norm() / vector.double().norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["group", "sample"])
@pytest.mark.parametrize("optimizer", some_quick(OPTIMIZERS))
def test_what_is_applied_is_orthogonal_to_the_subspace_whatever_the_optimizer_does(tiny, optimizer, rows):
    rail = {"apply_to": "update", "rows": rows}
    run = tiny.open(guard_rail=rail, optimizer=OPTIMIZERS[optimizer])
    for _ in range(5):
        update = change(run)
        assert update.norm() > 0
        assert leak(run, update) < 1e-5


def test_by_adam_a_projected_gradient_comes_back_into_the_subspace(tiny):
    """The published order: it shows that the test above can fail."""
    run = tiny.open(guard_rail={"apply_to": "gradient"})
    leaks = [leak(run, change(run)) for _ in range(5)]
    assert min(leaks) > 1e-3 and max(leaks) > 1e-2


@pytest.mark.parametrize("retain_weight", some_quick([0.0, 2.0]))
def test_with_sgd_the_forget_part_of_a_projected_gradient_stays_out_and_the_retain_part_is_whole(tiny, retain_weight):
    settings = {
        "guard_rail": {"apply_to": "gradient"}, "lora": {"dropout": 0.0}, "method": {"retain_weight": retain_weight},
        "optimizer": {"name": "sgd", "learning_rate": 0.5, "max_gradient_norm": 0.0},
    }  # fmt: skip
    run = tiny.open(**settings)
    for number in range(1, 6):
        batch = run.draws.batch(number)
        kept = torch.zeros_like(run.context.adapter.gradient)
        if retain_weight:
            kept = run.context.adapter.gradient_of(retain_weight * nll(run.context.model, batch.retain).token_mean)
        forget_part = change(run) / -0.5 - kept
        assert leak(run, forget_part) < 1e-5
        if retain_weight:
            assert leak(run, kept) > 0.01, "the retain part itself lies in the span: projecting it would undo it"


def test_what_is_recorded_of_a_step_is_what_happened(tiny):
    run = tiny.open(method={"retain_weight": 1.0})
    before = run.context.adapter.values.detach().clone()
    record = run.step()
    values, rows = record.values, run.update.rail.space.rows
    update = run.context.adapter.values.detach() - before
    assert record.step == run.step_number == 1 and record.applied and record.verdict is None
    assert values["update_norm"] == pytest.approx(update.norm().item(), rel=1e-5)
    assert values["learning_rate"] == 1e-2 and values["step_seconds"] > 0
    assert values["projected_gradient_norm"] <= values["gradient_norm"]
    assert values["retain_condition_number"] == pytest.approx(torch.linalg.cond(rows.double()).item(), rel=1e-3)
    assert values["retain_gradient_norm_median"] == run.update.rail.space.gradient_norm_median > 0
    batch = run.draws.batch(1)
    read = sum(len(window) for tokens in (batch.forget, batch.retain) for window in tokens.windows)
    rail = sum(len(window) for window in run.context.draw("rail", run.context.windows.retain, 1, 6))
    assert values["tokens"] == read + rail
    assert {f"{name}_loss" for name in run.context.windows.sets()} <= set(values)


@pytest.mark.slow
def test_the_share_that_was_removed_is_that_of_what_was_projected(tiny):
    run = tiny.open(guard_rail={"apply_to": "gradient"}, optimizer={"name": "sgd"})
    values = run.step().values
    assert values["removed_share"] == pytest.approx(1 - values["projected_gradient_norm"] / values["gradient_norm"])
    free, railed = tiny.open(guard_rail={"kind": "none"}), tiny.open()
    raw, kept = free.step().values, railed.step().values
    # Adam's first step is a sign step, of the same length whatever the gradient: the dropout masks may differ.
    assert kept["removed_share"] == pytest.approx(1 - kept["update_norm"] / raw["update_norm"], abs=1e-2)
    assert raw["removed_share"] == 0 and raw["projected_gradient_norm"] == raw["gradient_norm"]


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
def test_base_weights_and_the_reference_do_not_change_by_a_bit(tiny, model):
    run = tiny.open(model)
    frozen = {name: p.detach().clone() for name, p in run.context.model.named_parameters() if not p.requires_grad}
    tokens = collate(run.context.windows.forget[:3], run.context.pad_id)

    def reference_logits() -> torch.Tensor:
        with run.context.reference() as quiet:
            return quiet(input_ids=tokens.ids, attention_mask=tokens.mask).logits

    before = reference_logits()
    for _ in range(4):
        run.step()
    assert all(torch.equal(p, frozen[name]) for name, p in run.context.model.named_parameters() if not p.requires_grad)
    assert torch.equal(reference_logits(), before)
    assert all("lora_" in name for name, p in run.context.model.named_parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for p in run.context.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
@pytest.mark.parametrize("modules", ["auto", "q_proj, k_proj,v_proj"])
def test_the_adapter_is_on_the_named_layers_and_moves_in_every_one_from_the_first_step(tiny, model, modules):
    run = tiny.open(model, lora={"modules": modules})
    b_parts = {name: p for name, p in run.context.model.named_parameters() if "lora_B" in name}
    kinds = {"q_proj", "v_proj"} if modules == "auto" else {"q_proj", "k_proj", "v_proj"}
    assert {name.split(".lora_B")[0].rsplit(".", 1)[-1] for name in b_parts} == kinds
    assert len(b_parts) == 2 * len(kinds) and all(not p.any() for p in b_parts.values())
    run.step()
    assert all(p.any() for p in b_parts.values())
    a_before = {name: p.detach().clone() for name, p in run.context.model.named_parameters() if "lora_A" in name}
    run.step()
    assert not any(
        torch.equal(p, a_before[name]) for name, p in run.context.model.named_parameters() if "lora_A" in name
    )


def test_layers_that_a_model_does_not_have_are_refused_with_those_it_has(tiny):
    for modules in ("query", ",", " "):
        with pytest.raises(ConfigError, match="lora.modules.*k_proj.*q_proj"):
            tiny.open(lora={"modules": modules})


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "half a model", "no JSON"])
def test_a_model_that_cannot_be_loaded_is_named_with_the_reason_in_one_line(tiny, tmp_path, missing):
    shutil.copytree(tiny.root / "gptj", tmp_path / "model")
    if missing == "half a model":
        weights = tmp_path / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif missing == "no JSON":
        (tmp_path / "model" / "config.json").write_text("{")
    else:
        (tmp_path / "model" / missing).unlink()
    with pytest.raises(ConfigError, match="^model.source is ") as caught:
        tiny.open(model={"source": str(tmp_path / "model")})
    assert str(tmp_path / "model") in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_without_any_special_token_is_enough(tiny, tmp_path):
    shutil.copytree(tiny.root / "gptj", tmp_path / "model")
    file = str(tmp_path / "model" / "tokenizer.json")
    PreTrainedTokenizerFast(tokenizer_file=file).save_pretrained(tmp_path / "model")
    run = tiny.open(model={"source": str(tmp_path / "model")})
    assert run.context.tokenizer.eos_token_id is None
    assert run.step().applied and len(run.answers(["The cat", "What is it, in more words than one?"])) == 2


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_and_another_seed_another(tiny):
    def adapter_after(seed: int) -> torch.Tensor:
        run = tiny.open(seed=seed)
        for _ in range(4):
            run.step()
        return run.context.adapter.values.detach()

    first = adapter_after(0)
    torch.rand(3)
    assert torch.equal(adapter_after(0), first) and not torch.equal(adapter_after(1), first)


def test_every_window_is_seen_once_before_any_is_seen_twice_and_each_time_round_in_another_order(tiny):
    run = tiny.open()
    count = len(run.context.windows.forget)
    drawn = [
        w for number in range(1, count + 1) for w in run.context.draw("forget", run.context.windows.forget, number, 2)
    ]
    laps = [drawn[:count], drawn[count:]]
    assert len(drawn) == 2 * count and all(len(set(lap)) == count for lap in laps) and laps[0] != laps[1]
    assert run.context.draw("forget", run.context.windows.forget[:1], 5, 3) == [run.context.windows.forget[0]] * 3


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_retain_and_neighbour_windows_of_a_step_are_as_many_as_asked_for_or_as_the_forget_windows(tiny, rows):
    weights = {"name": "counterfactual", "retain_weight": 1.0, "neighbour_weight": 1.0}
    run = tiny.open(method=weights, schedule={"batch_size": 3, "retain_batch_size": rows})
    batch = run.draws.batch(1)
    assert len(batch.forget.windows) == 3
    assert len(batch.retain.windows) == len(batch.neighbour.windows) == (rows or 3)


def test_nll_is_the_model_s_own_loss(tiny):
    for kind in ("gptj", "llama"):
        run = tiny.open(kind)
        run.context.model.eval()
        for window in (run.context.windows.forget[0], run.context.windows.retain[0]):
            tokens = collate([window], run.context.pad_id)
            with torch.no_grad():
                own = run.context.model(input_ids=tokens.ids, attention_mask=tokens.mask, labels=tokens.labels).loss
                found = nll(run.context.model, tokens)
            torch.testing.assert_close(found.mean_per_token[0], own)
            assert found.count.item() == len(window) - window.first_loss


def test_a_row_s_loss_does_not_depend_on_its_batch(tiny):
    run = tiny.open()
    run.context.model.eval()
    windows = [*run.context.windows.forget[:4], *run.context.windows.retain[:4], Window((5, 6), 1, "", "")]
    with torch.no_grad():
        together = nll(run.context.model, collate(windows, run.context.pad_id))
        alone = [nll(run.context.model, collate([window], run.context.pad_id)) for window in windows]
    torch.testing.assert_close(together.mean_per_token, torch.cat([one.mean_per_token for one in alone]))
    assert together.count.tolist() == [int(one.count) for one in alone]


@pytest.mark.slow
def test_evaluation_does_not_depend_on_how_windows_are_packed_and_leaves_the_mode_alone(tiny, monkeypatch):
    run = tiny.open()
    run.step()
    for training in (True, False):
        run.context.model.train(training)
        losses = []
        for most in (1, 100, 700, 10**6):
            monkeypatch.setattr("unlearn_core.model.batches.MOST_TOKENS", most)
            packed = EvaluationWindows(run.context.windows, run.context.pad_id, run.context.device)
            assert sorted(row for group in packed.tokens.groups for row in group) == list(range(len(packed.names)))
            assert all(
                len(group) == 1 or len(group) * max(len(packed.tokens.windows[row]) for row in group) <= most
                for group in packed.tokens.groups
            )
            losses.append(values_of(evaluate(run.context.model, packed)))
        assert run.context.model.training is training
        for one, other in itertools.pairwise(losses):
            assert one == pytest.approx(other, rel=1e-5)


def test_evaluation_spreads_over_the_whole_set_and_takes_all_of_a_small_one(tiny):
    some = [Window((n, n), 1, str(n), "") for n in range(100)]
    for size, count in itertools.product((0, 1, 3, 15, 16, 17, 100), (1, 16)):
        chosen = spread(some[:size], count)
        assert len(set(chosen)) == len(chosen) == min(size, count)
    assert [w.ids[0] for w in spread(some, 4)] == [0, 25, 50, 75] and spread(some[:5], 16) == some[:5]
    run = tiny.open()
    names = run.evaluation.names
    assert {n: names.count(n) for n in set(names)} == {
        name: min(EVALUATED[name], len(found)) for name, found in run.context.windows.sets().items()
    }


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_caught_before_anything_changes(tiny):
    run = tiny.open(method={"retain_weight": 1.0})
    for _ in range(3):
        run.step()
    adapter = run.context.adapter.values.detach().clone()
    moments = {k: v.clone() for k, v in run.update.optimizer.state[run.context.adapter.values].items()}
    head = run.context.model.get_base_model().lm_head.weight.data
    healthy = head.clone()
    head[0, 0] = float("inf")
    record = run.step()
    assert record.verdict.rule == "not_finite" and not record.applied and record.step == 4 and run.step_number == 3
    assert "not a number" in record.verdict.sentence
    assert torch.equal(run.context.adapter.values, adapter) and not run.context.adapter.gradient.any()
    assert all(torch.equal(v, moments[k]) for k, v in run.update.optimizer.state[run.context.adapter.values].items())
    head.copy_(healthy)
    again, untouched = run.step(), tiny.open(method={"retain_weight": 1.0})
    for _ in range(4):
        expected = untouched.step()
    assert again.applied and again.values["objective"] == expected.values["objective"]
    assert torch.equal(run.context.adapter.values, untouched.context.adapter.values)


@pytest.mark.parametrize("apply_to", some_quick(["update", "gradient"]))
def test_a_gradient_that_is_not_finite_is_caught_in_the_part_to_keep_too(tiny, apply_to):
    run = tiny.open(guard_rail={"apply_to": apply_to}, method={"retain_weight": 1.0})
    run.step()
    adapter = run.context.adapter.values.detach().clone()
    plain = type(run.context.adapter).gradient_of
    calls = itertools.count()

    def spoilt(self, loss):  # the last gradient of the step: the sum's, or that of the part to keep
        found = plain(self, loss)
        return found * float("nan") if next(calls) == (3 if apply_to == "update" else 4) else found

    run.context.adapter.gradient_of = spoilt.__get__(run.context.adapter)
    record = run.step()
    assert next(calls) >= 4 and not record.applied and record.verdict.rule == "not_finite"
    assert torch.equal(run.context.adapter.values, adapter)


def test_with_that_rule_off_a_step_that_cannot_be_taken_is_counted_and_left_out(tiny):
    run = tiny.open(guard={"not_finite": False})
    adapter = run.context.adapter.values.detach().clone()
    run.context.model.get_base_model().lm_head.weight.data[0, 0] = float("nan")
    record = run.step()
    assert (record.step, run.step_number, record.applied, record.verdict) == (1, 1, False, None)
    assert not math.isfinite(record.values["objective"]) and torch.equal(run.context.adapter.values, adapter)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"steps": 4}, [1, 1, 1, 1]),
        ({"steps": 4, "decay": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"steps": 6, "warmup": 2, "decay": "linear"}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ({"steps": 3, "warmup": 5}, [0.2, 0.4, 0.6]),
        ({"steps": 1, "warmup": 1, "decay": "linear"}, [1]),
        ({"steps": 2, "decay": "linear"}, [1, 0.5, 0, 0]),
    ],
)
def test_the_learning_rate_rises_and_falls_as_scheduled_and_is_what_the_optimizer_uses(tiny, schedule, expected):
    run = tiny.open(schedule=schedule, guard_rail={"kind": "none"})
    for number, share in enumerate(expected, 1):
        rate = learning_rate(run.config, number)
        assert rate == pytest.approx(share * 1e-2)
        assert run.step().values["learning_rate"] == run.update.optimizer.param_groups[0]["lr"] == rate


@pytest.mark.slow
def test_evaluating_less_often_only_leaves_numbers_out(tiny):
    often, seldom = tiny.open(), tiny.open(schedule={"evaluate_every": 3})
    for number in range(1, 5):
        full, sparse = often.step().values, seldom.step().values
        assert ("forget_loss" in sparse) == (number % 3 == 0)
        assert {k: v for k, v in sparse.items() if k != "step_seconds"}.items() <= full.items()


def test_the_level_that_counts_as_forgotten_is_that_of_stand_ins_from_the_same_place_on(tiny, tmp_path):
    run = tiny.open()
    assert run.levels()["forget_level"] == pytest.approx(math.log(379), rel=0.2)
    assert run.levels()["uniform_loss"] == pytest.approx(math.log(run.context.model.config.vocab_size))
    ends = tmp_path / "ends.txt"
    ends.write_text("\n".join(f"The cat number {n} says zorblatt" for n in range(9)), encoding="utf-8")
    nothing_behind = tiny.open(data={"forget": [str(ends)], "context_lines": 0})
    assert nothing_behind.guard.forget_level == pytest.approx(math.log(379), rel=0.3), "the name itself counts"
    whole = tiny.open(data={"everything": True}, method={"name": "npo"})
    assert whole.guard.forget_level == whole.guard.uniform_loss
    assert "guesses" in whole.levels()["forget_level_source"]
    made = run.context.counterfactuals
    made.held_out = (tiny.target,)
    own = EvaluationWindows(run.context.windows, run.context.pad_id, run.context.device, made)
    loss = sum(nll(run.context.model, collate([w], 0)).sum.item() for w in own.of("forget"))
    count = sum(len(w) - w.first_loss for w in own.of("forget"))
    told = own.held_out(run.context.reference)
    assert told.loss == pytest.approx(loss / count, rel=1e-4), "by its own name, the level is the forget loss"
