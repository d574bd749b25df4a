"""Masks by theorem: scores are what autograd and finite differences say, and what is fixed stays so to the bit."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.model.test_architectures import ARCHITECTURES, settings, zoo  # noqa: F401  (a fixture)
from tests.quick import some_quick
from unlearn_core.guard_rails.shared.subspace import RetainSubspace
from unlearn_core.masks.base import held, make_mask, masked, masked_share
from unlearn_core.masks.saliency import summed_gradients
from unlearn_core.masks.shared.rows import masked_layers, outputs_of, top
from unlearn_core.masks.structure import gates_on, head_width
from unlearn_core.model.adapters import chosen_layers
from unlearn_core.model.batches import collate
from unlearn_core.model.losses import nll
from unlearn_core.settings.errors import ConfigError
from unlearn_core.training.engine import Unlearner

pytestmark = pytest.mark.usefixtures("one_thread")

MASKS = ("saliency", "structure")
OPTIMIZERS = {
    "adamw": {"name": "adamw", "weight_decay": 0.1},
    "sgd": {"name": "sgd", "learning_rate": 0.3, "momentum": 0.9, "weight_decay": 0.1},
    "lion": {"name": "lion", "learning_rate": 1e-3, "weight_decay": 0.1},
    "sophia": {"name": "sophia", "learning_rate": 1e-3, "weight_decay": 0.1},
    "sophia_soul": {"name": "sophia_soul", "learning_rate": 1e-3, "weight_decay": 0.1},
}
ALL = {"modules": "all-linear"}


def bare(tiny, kind: str) -> nn.Module:
    """The model by itself, as the run began with it."""
    return AutoModelForCausalLM.from_pretrained(tiny.root / kind, dtype=torch.float32).eval()


def rows_of(run) -> dict[str, torch.Tensor]:
    """Of each adapted layer, by its name in the base model, which rows of B may change."""
    return {
        name.partition(".lora_B")[0].removeprefix("base_model.model."): run.context.mask[part].view(-1, 4)
        for name, part in run.context.adapter.parts().items()
        if ".lora_B" in name
    }


def expected_rows(scores: dict[str, torch.Tensor], share: float) -> set[tuple[str, int]]:
    """The best of (layer, row): ties do not occur here."""
    every = sorted(((s, name, row) for name, found in scores.items() for row, s in enumerate(found.tolist())))[::-1]
    return {(name, row) for _, name, row in every[: round(share * len(every))]}


# ------------------------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.5, 0.77, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
def test_a_share_is_met_to_the_nearest_whole_number_and_the_best_are_taken(size, share):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(size))
    best = top(scores, share)
    assert best.dtype == torch.bool and int(best.sum()) == max(1, round(share * size))
    assert best.all() or scores[best].min() > scores[~best].max()


def test_of_equals_the_first_are_taken_and_nothing_is_nothing():
    assert top(torch.zeros(10), 0.3).tolist() == [True] * 3 + [False] * 7
    assert top(torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]), 0.34).tolist() == [False, True, False, True, False, False]
    assert top(torch.tensor([0.0, 5.0, 0.0, -1.0]), 0.5).tolist() == [True, True, False, False]


# ------------------------------------------------------------------------------------------------------ saliency


def test_gradients_are_summed_before_anything_else_and_the_weights_are_frozen_again():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2).requires_grad_(False)
    start = [p.clone() for p in (*first.parameters(), *second.parameters())]
    inputs, wanted = torch.randn(5, 3), torch.randn(5, 2)
    by_hand = [torch.zeros(4, 3), torch.zeros(2, 4)]
    with summed_gradients([first.weight, second.weight]) as sums:
        for x, y in zip(inputs, wanted, strict=True):
            said = second(torch.tanh(first(x)))
            (said - y).square().sum().backward(inputs=list(sums))
            h, delta = torch.tanh(first(x)).detach(), 2 * (said - y).detach()
            by_hand[1] += torch.outer(delta, h)
            by_hand[0] += torch.outer((second.weight.detach().T @ delta) * (1 - h.square()), x)
        found = [sums[first.weight].clone(), sums[second.weight].clone()]
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, other)
    now = [*first.parameters(), *second.parameters()]
    assert all(
        torch.equal(p, was) and not p.requires_grad and p.grad is None for p, was in zip(now, start, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("modules", ["auto", "all-linear"])
@pytest.mark.parametrize("kind", some_quick(["gptj", "llama"]))
def test_the_rows_that_may_change_are_those_whose_base_weights_the_target_moves_most(tiny, kind, modules):
    run = tiny.open(kind, lora={"modules": modules}, where={"mask": "saliency", "share": 0.3})
    model = bare(tiny, kind)
    sum(nll(model, collate([window], 0)).sum.sum() for window in run.context.windows.forget).backward()
    chosen = rows_of(run)
    scores = {name: model.get_submodule(name).weight.grad.abs().mean(1) for name in chosen}
    assert {(name, row) for name, rows in chosen.items() for row in rows.all(1).nonzero().flatten().tolist()} == (
        expected_rows(scores, 0.3)
    )
    assert all(torch.equal(rows.all(1), rows.any(1)) for rows in chosen.values()), "rows are fixed as a whole"


@pytest.mark.slow
def test_a_row_is_judged_by_its_mean_entry_so_a_wide_layer_does_not_come_first(tiny):
    """The sum over a row would favour the layer with twice as many inputs."""
    run = tiny.open("llama", lora=ALL, where={"mask": "saliency", "share": 0.3})
    model = bare(tiny, "llama")
    sum(nll(model, collate([window], 0)).sum.sum() for window in run.context.windows.forget).backward()
    sums = {name: model.get_submodule(name).weight.grad.abs().sum(1) for name in rows_of(run)}
    by_sum = {name for name, _ in expected_rows(sums, 0.3) if name.endswith("down_proj")}
    chosen = {name for name, rows in rows_of(run).items() if rows.any() and name.endswith("down_proj")}
    assert len({model.get_submodule(name).in_features for name in sums}) == 2 and chosen <= by_sum


def test_of_the_weights_themselves_every_number_is_ranked_by_the_published_score(tiny):
    run = tiny.open("llama", where={"kind": "full", "mask": "saliency", "share": 0.2})
    model = bare(tiny, "llama")
    sum(nll(model, collate([window], 0)).sum.sum() for window in run.context.windows.forget).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    score = torch.cat([grads[name].abs().flatten() for name in run.context.adapter.parts()])
    assert int(run.context.mask.sum()) == round(0.2 * score.numel())
    worst = score[run.context.mask].min()
    # Another order of summing gives other last bits: what is clearly above is in, what is clearly below is out.
    assert run.context.mask[score > worst * 1.001].all() and not run.context.mask[score < worst * 0.999].any()


# ----------------------------------------------------------------------------------------------------- structure


def loss_in_double(model: nn.Module, ids: tuple[int, ...]) -> torch.Tensor:
    row = torch.tensor([ids])
    return nn.functional.cross_entropy(model(input_ids=row).logits[0, :-1].double(), row[0, 1:])


def scaled(layer: nn.Module, rows: slice, factor: float) -> None:
    """Some outputs of a linear layer times a factor, by its weights."""
    with torch.no_grad():
        (layer.weight.T if isinstance(layer, Conv1D) else layer.weight)[rows] *= factor
        if layer.bias is not None:
            layer.bias[rows] *= factor


@pytest.mark.parametrize("name", some_quick(["gpt2", "gptj", "llama", "gpt_neox", "phi3", "falcon"]))
def test_a_gate_s_slope_is_the_finite_difference_of_the_loss(zoo, tiny, name):  # noqa: F811
    ids = Unlearner(settings(tiny, zoo, name)).context.windows.forget[0].ids
    model = AutoModelForCausalLM.from_pretrained(zoo / name, dtype=torch.float64).eval().requires_grad_(False)
    layers = chosen_layers(model, "all-linear")
    widths = {layer: head_width(model, layer, layers[layer]) for layer in layers}
    assert {1, 8} == set(widths.values()), "heads and filters"
    with gates_on(layers, widths) as gates:
        slopes = torch.autograd.grad(loss_in_double(model, ids), list(gates.values()))
    for layer, slope in zip(gates, slopes, strict=True):
        place = int(slope.abs().argmax())
        rows = slice(place * widths[layer], (place + 1) * widths[layer])
        losses = []
        for factor in (1 + 1e-3, 1 - 1e-3):
            scaled(layers[layer], rows, factor)
            losses.append(loss_in_double(model, ids).item())
            scaled(layers[layer], rows, 1 / factor)
        assert slope[place].item() == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptj", "llama"])
def test_heads_and_filters_that_matter_to_the_target_more_than_to_retain_texts_may_change(tiny, kind):
    """By the other way to write it: a gate's slope is the sum of (d loss / d output) * output."""
    run = tiny.open(kind, lora=ALL, where={"mask": "structure", "share": 0.4})
    model, about = bare(tiny, kind), run.context.windows.forget
    beside = random.Random("0 mask").sample(run.context.windows.retain, len(about))
    names = list(rows_of(run))
    widths = {name: 16 if name.endswith(("q_proj", "k_proj", "v_proj")) else 1 for name in names}
    outputs: dict[str, torch.Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, found, name=name: outputs.update({name: found}))

    def importance(windows) -> dict[str, torch.Tensor]:
        total = dict.fromkeys(names, 0.0)
        for window in windows:
            loss = nll(model, collate([window], 0)).token_mean
            deltas = torch.autograd.grad(loss, [outputs[name] for name in names])
            for name, delta in zip(names, deltas, strict=True):
                slopes = (delta * outputs[name].detach()).sum((0, 1))
                total[name] = total[name] + slopes.view(-1, widths[name]).sum(1).abs() / len(windows)
        return total

    forget, retain = importance(about), importance(beside)
    expected = set()
    for alike in ([n for n in names if widths[n] > 1], [n for n in names if widths[n] == 1]):
        expected |= expected_rows({name: forget[name] - retain[name] for name in alike}, 0.4)
    chosen = {name: rows.all(1).view(-1, widths[name]) for name, rows in rows_of(run).items()}
    assert {
        (n, place) for n, found in chosen.items() for place in found.all(1).nonzero().flatten().tolist()
    } == expected
    assert all(torch.equal(found.all(1), found.any(1)) for found in chosen.values()), "heads are fixed as a whole"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_of_one_change_no_bit_and_are_gone_afterwards(tiny, dtype):
    model = bare(tiny, "llama").to(dtype)
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits
    layers = chosen_layers(model, "all-linear")
    with gates_on(layers, {name: head_width(model, name, layer) for name, layer in layers.items()}) as gates:
        assert torch.equal(model(input_ids=ids).logits, before)
        for gate in gates.values():
            gate.data.mul_(1.5)
        assert not torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)


# ---------------------------------------------------------------------------------------------- what is left free


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", some_quick(ARCHITECTURES, 2))
def test_on_every_architecture_a_is_free_and_the_share_of_rows_or_groups_is_met(tiny, zoo, name, mask):  # noqa: F811
    run = Unlearner(settings(tiny, zoo, name, where={"mask": mask, "share": 0.3}, model={"source": str(zoo / name)}))
    run.context.mask = make_mask(run.context)
    layers = masked_layers(run.context)
    widths = {layer: head_width(run.context.model, layer, module) for layer, module in layers.items()}
    assert set(widths.values()) == {8}, "queries, keys and values are made for heads of 8"
    parts = run.context.adapter.parts()
    assert all(run.context.mask[part].all() for part_name, part in parts.items() if ".lora_A" in part_name)
    width = 8 if mask == "structure" else 1
    groups = torch.cat([rows.flatten().view(-1, width * 4) for rows in rows_of(run).values()])
    assert torch.equal(groups.all(1), groups.any(1))
    assert int(groups.all(1).sum()) == round(0.3 * len(groups))
    assert masked_share(run.context.mask) == pytest.approx(1 - run.context.mask.double().mean().item())


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_of_the_weights_themselves_rows_of_linear_layers_may_change_and_nothing_else(tiny, zoo, mask):  # noqa: F811
    run = Unlearner(settings(tiny, zoo, "gpt2", where={"kind": "full", "mask": "structure", "share": 0.25}))
    found, parts = make_mask(run.context), run.context.adapter.parts()
    layers, free = masked_layers(run.context), 0
    for name, parameter in run.context.model.named_parameters():
        place = found[parts[name]].view(parameter.shape)
        layer = name.rpartition(".")[0]
        if layer not in layers:
            assert not place.any(), f"{name} is no row of a linear layer"
        elif name.endswith("weight"):
            bias = found[parts[f"{layer}.bias"]]
            assert torch.equal(place.all(0), bias) and torch.equal(place.any(0), bias), "outputs lie in columns"
            free += int(bias.sum()) if "c_attn" not in name else 0
            assert "c_attn" not in name or torch.equal(bias.view(-1, 8).all(1), bias.view(-1, 8).any(1))
    filters = sum(outputs_of(layer) for name, layer in layers.items() if "c_attn" not in name)
    assert free == round(0.25 * filters)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", some_quick(["lora", "full"]))
def test_a_mask_is_the_same_each_time_and_with_activations_computed_again(tiny, kind, mask):
    choice = {"kind": kind, "mask": mask, "share": 0.3}
    runs = [tiny.open("llama", where=choice, model={"gradient_checkpointing": again}) for again in (False, True)]
    masks = [run.context.mask for run in runs]
    assert torch.equal(*masks) and masks[0].any() and not masks[0].all()
    run = tiny.open("llama", where=choice)
    torch.manual_seed(99)
    assert torch.equal(make_mask(run.context), masks[0])


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_making_a_mask_leaves_the_model_as_it_was_even_when_it_is_ended(tiny, mask):
    run = tiny.open("llama", where={"mask": mask})
    run.context.model.train()
    ids = torch.arange(20)[None]
    said: list[str] = []

    def state() -> tuple:
        flags = [(p.requires_grad, p.grad is None) for p in run.context.model.parameters()]
        hooks = [
            len(m._forward_hooks) + len(p._backward_hooks or ())
            for m in run.context.model.modules()
            for p in m.parameters()
        ]
        return flags, hooks, run.context.model.training

    def end(stage: str, detail: str = "") -> None:
        said.append(detail)
        if len(said) == 3:
            raise KeyboardInterrupt

    before, numbers = state(), [p.detach().clone() for p in run.context.model.parameters()]
    make_mask(run.context)
    with pytest.raises(KeyboardInterrupt):
        run.context.report = end
        make_mask(run.context)
    assert state() == before and all(map(torch.equal, numbers, run.context.model.parameters()))
    assert not run.context.adapter.gradient.any()
    assert said[-1].endswith(f"3 of {len(run.context.windows.forget)}")
    run.context.model.eval()
    fresh = tiny.open("llama").context.model.eval()
    assert torch.equal(run.context.model(input_ids=ids).logits, fresh(input_ids=ids).logits)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_makes_no_mask_but_a_sentence(tiny):
    for mask in MASKS:
        run = tiny.open("llama")
        with torch.no_grad():
            run.context.model.get_parameter("base_model.model.model.norm.weight")[0] = float("inf")
        object.__setattr__(run.config.where, "mask", mask)
        with pytest.raises(ConfigError, match="No mask can be made: .* where.mask"):
            make_mask(run.context)


# ------------------------------------------------------------------------------------------------ what stays put


def fixed_in(run) -> torch.Tensor:
    return run.context.adapter.values.detach()[~run.context.mask].clone()


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("apply_to", some_quick(["update", "gradient", "none"]))
@pytest.mark.parametrize("optimizer", some_quick(OPTIMIZERS))
def test_what_is_fixed_stays_so_to_the_bit_under_momentum_decay_and_projection(tiny, optimizer, apply_to, mask):
    rail = {"kind": "none"} if apply_to == "none" else {"apply_to": apply_to}
    settings = {"optimizer": OPTIMIZERS[optimizer], "guard_rail": rail, "method": {"name": "grad_diff"}}
    run = tiny.open("llama", **settings, where={"mask": mask, "share": 0.4})
    with torch.no_grad():  # numbers that decay would move
        run.context.adapter.values.add_(
            0.01 * torch.randn(run.context.adapter.values.shape, generator=torch.Generator().manual_seed(1))
        )
        run.context.adapter.values[::7] = -0.0
    before, free = fixed_in(run), run.context.adapter.values.detach()[run.context.mask].clone()
    for _ in range(5):
        assert run.step().values["masked_share"] == pytest.approx(masked_share(run.context.mask))
    assert torch.equal(fixed_in(run).view(torch.int32), before.view(torch.int32))
    assert (run.context.adapter.values.detach()[run.context.mask] != free).double().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", some_quick(["gptj", "llama"]))
def test_a_step_among_free_numbers_is_orthogonal_to_the_retain_gradients_all_the_same(tiny, kind, mask):
    run = tiny.open(kind, lora={"dropout": 0.0}, guard_rail={"every": 1}, where={"mask": mask, "share": 0.4})
    for number in range(1, 5):
        drawn = run.context.draw("rail", run.context.windows.retain, number, 6)
        run.context.model.train()
        rows = [
            run.context.adapter.gradient_of(nll(run.context.model, collate(drawn[i::3], 0)).token_mean)
            for i in range(3)
        ]
        before = run.context.adapter.values.detach().clone()
        assert run.step().values["removed_share"] > 0
        update = run.context.adapter.values.detach() - before
        assert update.norm() > 0 and not update[~run.context.mask].any()
        for row in rows:
            assert (row @ update).abs() < 1e-5 * row.norm() * update.norm()


def test_what_is_fixed_does_not_count_for_the_longest_gradient(tiny):
    """Else a step would be shorter for gradients that nothing follows."""
    sgd = {"name": "sgd", "learning_rate": 1.0, "max_gradient_norm": 0.01}
    run = tiny.open("llama", optimizer=sgd, guard_rail={"kind": "none"}, where={"mask": "saliency", "share": 0.3})
    assert run.step().values["update_norm"] == pytest.approx(0.01, rel=1e-4)


def test_directions_are_masked_before_their_span_is_taken_out_and_then_both_hold():
    draw = torch.Generator().manual_seed(0)
    rows, step = torch.randn(4, 500, generator=draw), torch.randn(500, generator=draw)
    mask = torch.rand(500, generator=draw) < 0.3
    off = RetainSubspace.fit(masked(rows, mask)).project_out(masked(step, mask))
    assert not off[~mask].any() and (rows @ off).abs().max() < 1e-4
    other = masked(RetainSubspace.fit(rows).project_out(step), mask)
    assert (rows @ other).abs().max() > 1, "in the other order what was taken out comes back"


def test_holding_is_to_the_bit_and_no_mask_is_no_mask():
    mask = torch.tensor([True, False, True, False])
    before, after = torch.tensor([1.0, -0.0, 3.0, 1e-30]), torch.tensor([1.1, 0.0, float("inf"), 7.0])
    assert (
        held(after, before, mask).view(torch.int32).tolist()
        == torch.stack([after[0], before[1], after[2], before[3]]).view(torch.int32).tolist()
    )
    assert held(after, before, None) is after and masked(after, None) is after and masked_share(None) == 0.0
    assert masked(torch.tensor([1.0, float("nan"), 2.0, 3.0]), mask).tolist() == [1.0, 0.0, 2.0, 0.0]
    assert masked_share(mask) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("rail", some_quick([{"kind": "none"}, {"apply_to": "update"}, {"apply_to": "gradient"}]))
@pytest.mark.parametrize("choice", [("lora", "saliency"), ("lora", "structure"), ("full", "saliency")])
def test_a_mask_that_leaves_all_free_changes_nothing_to_the_bit(tiny, choice, rail):
    (kind, mask), settings = choice, {"optimizer": {"learning_rate": 1e-3}, "guard_rail": rail}
    plain = tiny.open("llama", where={"kind": kind}, **settings)
    run = tiny.open("llama", where={"kind": kind, "mask": mask, "share": 1.0}, **settings)
    assert run.context.mask.all() and plain.context.mask is None
    for _ in range(4):
        one, other = plain.step().values, run.step().values
        assert other == {**one, "masked_share": 0.0, "step_seconds": other["step_seconds"]}
        assert torch.equal(plain.context.adapter.values, run.context.adapter.values)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_goes_with_a_checkpoint_and_a_resumed_run_is_the_same_run(tiny, tmp_path, mask):
    choice = {"where": {"mask": mask, "share": 0.3}}
    run = tiny.open(**choice)
    run.step(), run.step()
    run.save(tmp_path, whole=True)
    again = Unlearner(tiny.config(**choice))
    again.restore(tmp_path)
    assert torch.equal(again.context.mask, run.context.mask)
    for _ in range(3):
        one, other = run.step().values, again.step().values
        assert {**one, "step_seconds": 0} == {**other, "step_seconds": 0}
    assert torch.equal(again.context.adapter.values, run.context.adapter.values)


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
def test_of_an_adapter_that_is_gone_on_with_a_is_fixed_so_that_fixed_rows_of_the_weight_are(tiny, tmp_path, mask):
    first = tiny.open("llama")
    first.step(), first.step()
    first.save(tmp_path, whole=False)
    run = tiny.open("llama", model={"adapter": str(tmp_path)}, where={"mask": mask, "share": 0.3})

    def products() -> list[torch.Tensor]:
        layers = masked_layers(run.context).values()
        return [layer.get_delta_weight("default").detach().clone() for layer in layers]

    assert not any(
        run.context.mask[part].any() for name, part in run.context.adapter.parts().items() if ".lora_A" in name
    )
    before = products()
    run.step(), run.step()
    for rows, was, now in zip(rows_of(run).values(), before, products(), strict=True):
        assert torch.equal(now[~rows.all(1)], was[~rows.all(1)])
        assert not rows.any() or not torch.equal(now[rows.all(1)], was[rows.all(1)])


def test_a_method_that_sets_weights_by_itself_takes_no_mask(tiny):
    no_rail = {"kind": "none"}
    with pytest.raises(ConfigError, match="potion_retain.* where.mask is 'saliency'.* Set where.mask to 'none'"):
        tiny.config(method={"name": "potion_retain"}, guard_rail=no_rail, where={"kind": "full", "mask": "saliency"})
    with pytest.raises(ConfigError, match="'ssd' and where.mask is 'structure'"):
        tiny.config(method={"name": "ssd"}, guard_rail=no_rail, where={"kind": "full", "mask": "structure"})
