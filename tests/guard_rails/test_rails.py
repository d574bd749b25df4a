"""Guard rails by theorem: what each kind keeps a step away from, that it keeps it off all of it, and nothing else."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.quick import some_quick
from unlearn_core.guard_rails.null_space import NullSpaceSettings
from unlearn_core.guard_rails.shared.input_projection import InputCovariance, leading_directions, retain_inputs
from unlearn_core.guard_rails.shared.retain_rows import FIRST_REFRESHES, retain_gradients, retain_samples
from unlearn_core.guard_rails.shared.subspace import RetainSubspace
from unlearn_core.model.batches import EVALUATED, collate
from unlearn_core.model.loading import load_base
from unlearn_core.model.losses import nll
from unlearn_core.model.memory import estimate_for
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import overlay
from unlearn_core.training.engine import Unlearner
from unlearn_core.training.update import make_rail

pytestmark = pytest.mark.usefixtures("one_thread")

NO_DROPOUT = {"lora": {"dropout": 0.0}}
OPTIMIZERS = {
    "adamw with decay": {"name": "adamw", "weight_decay": 0.1},
    "sgd with momentum": {"name": "sgd", "learning_rate": 0.3, "momentum": 0.9, "weight_decay": 0.01},
    "lion": {"name": "lion", "learning_rate": 1e-3, "weight_decay": 0.1},
}


def change(run) -> torch.Tensor:
    """What one step does to the adapter's vector (P,)."""
    before = run.context.adapter.values.detach().clone()
    run.step()
    return run.context.adapter.values.detach() - before


def cosines(rows: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    rows, vector = rows[rows.norm(dim=1) > 0].double(), vector.double()
    return (rows @ vector) / (rows.norm(dim=1) * vector.norm())


def noise(run, seed: int = 0) -> torch.Tensor:
    return torch.randn(run.context.adapter.values.numel(), generator=torch.Generator().manual_seed(seed))


def values_of(record) -> dict[str, float]:
    return {name: value for name, value in record.values.items() if name != "step_seconds"}


def refreshed(run, number: int = 1):
    """The run's rail, with directions of a model that has an A-part in its gradients."""
    for _ in range(2):
        run.step()
    run.update.rail.refresh(number)
    return run.update.rail


# ------------------------------------------------------------------------------------------ spans of retain gradients


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["group", "sample", "logit"])
@pytest.mark.parametrize("scope", some_quick(["global", "layer"]))
@pytest.mark.parametrize("history", some_quick([1, 3]))
def test_a_step_is_orthogonal_to_every_protected_row(tiny, rows, scope, history):
    run = tiny.open(guard_rail={"rows": rows, "scope": scope, "history": history, "every": 2})
    count = 3 if rows == "group" else 6
    for number in range(1, 6):
        update = change(run)
        assert update.norm() > 0 and len(run.update.rail.spaces) == (1 if scope == "global" else 4)
        for name, space in run.update.rail.spaces.items():
            assert len(space.rows) == count * min(history, (1, 2, 3, 3, 4)[number - 1])
            part = update[run.update.rail.spans[name]]
            assert cosines(space.rows, part).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", some_quick(["retain_subspace", "one_sided"]))
def test_with_one_layer_alone_its_own_span_is_the_global_one(tiny, kind):
    def steps(scope: str) -> tuple[list, torch.Tensor]:
        rail = {"kind": kind, "scope": scope, "history": 2}
        run = tiny.open(lora={"modules": "h.0.attn.q_proj"}, guard_rail=rail)
        return [values_of(run.step()) for _ in range(5)], run.context.adapter.values.detach()

    (one, by_layer), (other, everywhere) = steps("layer"), steps("global")
    assert one == other and torch.equal(by_layer, everywhere)


@pytest.mark.slow
def test_orthogonal_in_every_layer_is_orthogonal_globally_and_stays_so_under_any_rescaling_by_layer(tiny):
    by_layer = tiny.open(guard_rail={"scope": "layer"}, **NO_DROPOUT)
    globally = tiny.open(**NO_DROPOUT)
    for run in (by_layer, globally):
        run.step()
    rows, _, _ = retain_gradients(by_layer.context, by_layer.config.guard_rail, 2)
    update = change(by_layer)
    assert cosines(rows, update).abs().max() < 1e-5
    scales = torch.ones_like(update)
    for number, part in enumerate(by_layer.update.rail.spans.values()):
        scales[part] = 2.0**number
    assert cosines(rows, update * scales).abs().max() < 1e-5
    rows, _, _ = retain_gradients(globally.context, globally.config.guard_rail, 2)
    update = change(globally)
    assert cosines(rows, update).abs().max() < 1e-5
    assert cosines(rows, update * scales).abs().max() > 1e-3, "the global condition alone does not"


def test_a_and_b_of_a_layer_share_a_span_and_the_spans_make_up_the_vector(tiny):
    run = tiny.open(guard_rail={"scope": "layer"})
    spans = list(run.update.rail.spans.items())
    assert [name.removeprefix("base_model.model.") for name, _ in spans] == run.context.adapter.layers
    ends = [(part.start, part.stop) for _, part in spans]
    assert ends[0][0] == 0 and ends[-1][1] == run.context.adapter.values.numel()
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ends))


def test_of_a_model_whose_own_weights_are_trained_each_parameter_has_its_span(tiny):
    run = tiny.open(where={"kind": "full"}, guard_rail={"scope": "layer"}, optimizer={"learning_rate": 1e-4})
    assert list(run.update.rail.spans) == [name for name, _ in run.context.model.named_parameters()]
    update = change(run)
    for name, space in run.update.rail.spaces.items():
        if update[part := run.update.rail.spans[name]].any():
            # A step of 1e-4 on numbers of some size: the sum rounds.
            assert cosines(space.rows, update[part]).abs().max() < 1e-2


def test_the_rolling_span_is_that_of_the_stacked_rows_of_the_last_refreshes():
    generator = torch.Generator().manual_seed(0)
    refreshes = [torch.randn(3, 500, generator=generator) * 10.0**scale for scale in (0, 3, -2, 1, 0)]
    refreshes[3][1] = 0  # a row that vanishes: one less from this refresh
    rolling = None
    for count in range(1, 6):
        rolling = RetainSubspace.fit(refreshes[count - 1], rolling, 3)
        stacked = RetainSubspace.fit(torch.cat(refreshes[max(0, count - 3) : count]))
        assert torch.equal(rolling.rows, stacked.rows) and rolling.rank == stacked.rank
        assert rolling.sizes == (3, 3, 3, 2, 3)[max(0, count - 3) : count]
        torch.testing.assert_close(rolling.gram, stacked.gram, rtol=0, atol=1e-12)
        assert rolling.condition_number == pytest.approx(stacked.condition_number, rel=1e-9)
        vector = torch.randn(500, generator=generator)
        torch.testing.assert_close(rolling.project_out(vector), stacked.project_out(vector), rtol=0, atol=1e-6)
        assert rolling.gradient_norm_median == refreshes[count - 1].norm(dim=1).median().item()


def test_a_refresh_without_any_gradient_leaves_the_rows_of_those_before():
    rows = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    first = RetainSubspace.fit(rows, None, 2)
    second = RetainSubspace.fit(torch.zeros(4, 300), first, 2)
    assert torch.equal(second.rows, first.rows) and second.sizes == (4, 0)
    assert RetainSubspace.fit(torch.zeros(4, 300), second, 2) is None


def test_a_logit_row_is_the_gradient_of_the_right_words_logits(tiny):
    run = tiny.open(guard_rail={"rows": "logit"}, **NO_DROPOUT)
    run.step()
    run.context.model.train()
    rows, _, _ = retain_gradients(run.context, run.config.guard_rail, 2)
    parameters = [p for p in run.context.model.parameters() if p.requires_grad]
    samples = retain_samples(run.context, run.config.guard_rail, 2)
    assert len(rows) == len(samples) == 6
    for row, window in zip(rows, samples, strict=True):
        logits = run.context.model(input_ids=torch.tensor([window.ids])).logits[0]
        places = range(max(1, window.first_loss), len(window))
        right = sum(logits[place - 1, window.ids[place]] for place in places) / len(places)
        expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(right, parameters)])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------- the retain term


@pytest.mark.parametrize("scope", some_quick(["global", "layer"]))
def test_inside_the_span_the_update_is_what_the_retain_term_does_there_and_outside_it_is_as_it_was(tiny, scope):
    run = tiny.open(guard_rail={"scope": scope})
    rail = refreshed(run)
    update, keep, gain = noise(run, 1), noise(run, 2), 0.37
    longest = 1e9
    off = rail.project_out(update) + rail.retain_step(keep, gain, longest)
    for name, space in rail.spaces.items():
        part = rail.spans[name]
        torch.testing.assert_close(
            space.coordinates(off[part]), -gain * space.coordinates(keep[part]), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(space.project_out(off[part]), space.project_out(update[part]), rtol=1e-4, atol=1e-5)
    assert torch.equal(rail.project_out(update), rail.project_gradient(update))
    assert not rail.retain_step(torch.zeros_like(keep), gain, longest).any()
    assert rail.project_retain(update) is update


def test_a_step_goes_down_on_retain_text_where_the_loss_has_a_retain_term_and_is_flat_where_it_has_none(tiny):
    settings = {"optimizer": {"name": "sgd", "learning_rate": 0.1, "max_gradient_norm": 0.0}, **NO_DROPOUT}
    for weight in (0.0, 1.0):
        run = tiny.open(method={"name": "grad_diff", "retain_weight": weight}, **settings)
        for _ in range(3):
            before = run.draws.batch(run.step_number + 1).retain
            kept = (
                run.context.adapter.gradient_of(weight * nll(run.context.model, before).token_mean) if before else None
            )
            update = change(run)
            inside = run.update.rail.space.coordinates(update)
            expected = torch.zeros_like(inside) if kept is None else -0.1 * run.update.rail.space.coordinates(kept)
            torch.testing.assert_close(inside, expected, rtol=1e-3, atol=1e-6)
            assert not weight or expected.norm() > 1e-4


# -------------------------------------------------------------------------------------------------------- one-sided


def test_one_sided_is_a_gem_where_a_step_conflicts_and_nothing_to_the_bit_where_it_does_not(tiny):
    run = tiny.open(guard_rail={"kind": "one_sided"})
    rail = refreshed(run)
    r = rail.mean.double()
    assert r.norm() > 0
    across = noise(run).double()
    across -= (across @ r) / (r @ r) * r
    for harm, off in ((-1, rail.project_gradient), (1, rail.project_out)):
        for along in (-3.0, -0.1, 0.1, 3.0):
            vector = (across + along * r / r.norm() * across.norm()).float()
            freed = off(vector)
            if harm * along < 0:
                assert torch.equal(freed, vector)
                continue
            wide = vector.double()
            expected = wide - (wide @ r) / (r @ r) * r  # A-GEM's formula
            torch.testing.assert_close(freed.double(), expected, rtol=0, atol=2e-6 * vector.norm().item())
            assert abs(cosines(r[None], freed).item()) < 1e-6
    rail.project_gradient((across - r / r.norm() * across.norm()).float())
    assert rail.values()["conflict"] == pytest.approx(2**-0.5, rel=1e-5)
    rail.project_gradient(rail.mean)
    assert rail.values()["conflict"] == pytest.approx(-1.0)


def test_what_conflicts_is_freed_as_from_a_span_of_that_one_direction(tiny):
    sided, whole = (tiny.open(guard_rail={"kind": kind, "groups": 1}) for kind in ("one_sided", "retain_subspace"))
    for run in (sided, whole):
        torch.manual_seed(3)
        run.context.model.train()
        run.update.rail.refresh(1)
    vector = noise(sided)
    vector *= torch.sign(vector @ sided.update.rail.mean)
    assert torch.equal(sided.update.rail.project_out(vector), whole.update.rail.project_out(vector))


@pytest.mark.parametrize("scope", some_quick(["global", "layer"]))
def test_no_one_sided_step_raises_the_retain_loss_to_first_order(tiny, scope):
    run = tiny.open(guard_rail={"kind": "one_sided", "scope": scope, "every": 1}, method={"name": "grad_ascent"})
    removed = []
    for _ in range(6):
        record_before = run.context.adapter.values.detach().clone()
        record = run.step()
        update = run.context.adapter.values.detach() - record_before
        for part in run.update.rail.spans.values():
            assert cosines(run.update.rail.mean[None, part], update[part]).max() < 1e-5
        removed.append(record.values["removed_share"])
        assert -1 <= record.values["conflict"] <= 1
    assert any(removed)


@pytest.mark.slow
def test_what_helps_both_is_left_alone_altogether(tiny):
    """Descent on retain text itself, with the very samples of the rail: nothing is ever taken out."""
    rail = {"kind": "one_sided", "every": 1, "batches": 1, "batch_size": 2, "groups": 1}
    run, free = (
        tiny.open(method={"name": "retain_only"}, guard_rail=settings, optimizer={"name": "sgd"}, **NO_DROPOUT)
        for settings in (rail, {"kind": "none"})
    )
    for _ in range(4):
        number = run.step_number + 1
        same = retain_samples(run.context, run.config.guard_rail, number)
        run.context.draw = free.context.draw = lambda name, windows, number, count, same=same: same[:count]
        assert run.step().values["removed_share"] == 0
        free.step()
        # The engine adds the change to where it began, which rounds.
        torch.testing.assert_close(run.context.adapter.values, free.context.adapter.values, rtol=1e-5, atol=1e-7)
        del run.context.draw, free.context.draw


def test_the_one_direction_is_the_mean_over_rows_and_over_the_last_refreshes(tiny):
    run = tiny.open(guard_rail={"kind": "one_sided", "history": 2, "rows": "sample"}, **NO_DROPOUT)
    run.step()
    means = [retain_gradients(run.context, run.config.guard_rail, number)[0].mean(0) for number in (1, 2, 3)]
    rail = make_rail(run.context)
    for number in (1, 2, 3):
        rail.refresh(number)
    torch.testing.assert_close(rail.mean, (means[1] + means[2]) / 2)


# ------------------------------------------------------------------------------------------------ when to look anew


def refresh_steps(run, count: int) -> list[int]:
    found = []
    for number in range(1, count + 1):
        run.step()
        if run.update.rail.refreshes.last == number:
            found.append(number)
    return found


@pytest.mark.slow
def test_by_count_directions_are_renewed_in_the_first_three_steps_and_then_every_so_many(tiny):
    assert refresh_steps(tiny.open(guard_rail={"every": 4}), 10) == [1, 2, 3, 5, 9]


@pytest.mark.slow
@pytest.mark.parametrize("kind", some_quick(["retain_subspace", "one_sided"]))
def test_by_drift_they_are_renewed_when_the_weights_have_moved_that_far_and_only_then(tiny, kind):
    run = tiny.open(guard_rail={"kind": kind, "refresh": "drift", "drift": 0.25})
    then, expected, found = None, [], []
    for number in range(1, 13):
        now = run.context.adapter.values.detach().clone()
        drift = ((now - then).norm() / now.norm()).item() if then is not None else 0.0
        if number <= FIRST_REFRESHES or drift > 0.25:
            expected.append(number)
            then = now
        record = run.step()
        assert record.values["rail_drift"] == drift
        if run.update.rail.refreshes.last == number:
            found.append(number)
    assert found == expected and 3 < len(found) < 12
    assert refresh_steps(tiny.open(guard_rail={"kind": kind, "refresh": "drift", "drift": 10.0}), 8) == [1, 2, 3]
    assert len(refresh_steps(tiny.open(guard_rail={"kind": kind, "refresh": "drift", "drift": 1e-6}), 8)) == 8


def test_samples_are_fresh_at_each_refresh_and_half_of_them_neighbours_where_asked_for(tiny):
    run = tiny.open(guard_rail={"neighbours": True})
    first, second = (retain_samples(run.context, run.config.guard_rail, number) for number in (1, 2))
    near = set(run.context.windows.neighbour)
    assert len(first) == len(second) == 6 and len(near & set(first)) == 3
    assert not (set(first) & set(second)) - near
    far = tiny.open()
    assert not near & set(retain_samples(far.context, far.config.guard_rail, 1))


@pytest.mark.slow
def test_what_was_left_over_is_the_last_sample_s_own_gradient_in_refresh_steps_alone(tiny):
    rail = {"groups": 2, "every": 3}
    run = tiny.open(as_run={"leftover_gradients": True}, guard_rail=rail, **NO_DROPOUT)
    for number in range(1, 6):
        groups = [retain_samples(run.context, run.config.guard_rail, number)[place::2] for place in range(2)]
        last = collate([groups[-1][-1]], run.context.pad_id)
        run.context.model.train()
        expected = run.context.adapter.gradient_of(nll(run.context.model, last).token_mean)
        run.step()
        assert (run.update.rail.leftover is None) is (number == 5)
        if number < 5:
            torch.testing.assert_close(run.update.rail.leftover, expected, rtol=1e-4, atol=1e-6)
    plain = tiny.open(guard_rail=rail)
    plain.step()
    assert plain.update.rail.leftover is None


@pytest.mark.parametrize("kind", some_quick(["retain_subspace", "one_sided"]))
def test_a_masked_step_stays_masked_and_is_kept_off_all_the_same(tiny, kind):
    run = tiny.open(guard_rail={"kind": kind, "every": 1})
    run.context.mask = noise(run) > 0
    for _ in range(4):
        update = change(run)
        assert not update[~run.context.mask].any() and update[run.context.mask].any()
        rows = run.update.rail.space.rows if kind == "retain_subspace" else run.update.rail.mean[None]
        assert not rows[:, ~run.context.mask].any()
        assert cosines(rows, update).max() < 1e-5


# -------------------------------------------------------------------------------- what retain texts put into a layer


def parts_of(run, which: str) -> dict[str, torch.Tensor]:
    """By layer, A (rank, inputs) or B (outputs, rank)."""
    named = {name: p.detach() for name, p in run.context.model.named_parameters() if p.requires_grad}
    return {name.partition(".lora_")[0]: p for name, p in named.items() if f".lora_{which}." in name}


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
@pytest.mark.parametrize("optimizer", some_quick(OPTIMIZERS))
def test_an_adapter_s_output_is_zero_on_the_protected_span_whatever_the_optimizer_does(tiny, model, optimizer):
    rail = {"kind": "null_space", "energy": 0.8}
    run = tiny.open(model, guard_rail=rail, optimizer=OPTIMIZERS[optimizer], method={"retain_weight": 1.0})
    for _ in range(10):
        run.step()
    run.context.model.eval()
    for layer, basis in run.update.rail.bases.items():
        a, b = parts_of(run, "A")[layer], parts_of(run, "B")[layer]
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-6)
        assert 0 < basis.shape[1] < basis.shape[0] and b.norm() > 0
        module = run.context.model.get_submodule(layer)
        inside = torch.randn(20, basis.shape[1], generator=torch.Generator().manual_seed(0)) @ basis.T
        outside = torch.randn(20, len(basis), generator=torch.Generator().manual_seed(1))
        added = module(inside) - module.base_layer(inside)
        assert added.norm() < 1e-5 * (module(outside) - module.base_layer(outside)).norm()
        assert (a @ basis).norm() < 1e-6 * a.norm()


def test_without_the_rail_it_is_not(tiny):
    """The test above can fail."""
    run = tiny.open(guard_rail={"kind": "none"})
    bases = retain_inputs(run.context, NullSpaceSettings(batches=3), 0.97)
    for _ in range(3):
        run.step()
    a = parts_of(run, "A")
    assert min((a[layer] @ basis).norm() / a[layer].norm() for layer, basis in bases.items()) > 0.1


def test_with_all_energy_a_protected_text_is_read_as_before_step_one_while_the_target_goes(tiny):
    """To all orders: not its loss, but every logit stays, since a layer's inputs do where the outputs before it do."""
    rail = {"kind": "null_space", "energy": 1.0, "batches": 1, "batch_size": 1}
    run = tiny.open(guard_rail=rail, data={"retain_lines": 1, "window_tokens": 24}, optimizer={"learning_rate": 3e-2})
    (window,) = retain_samples(run.context, run.config.guard_rail, 1)
    assert len(window) < 32 == run.context.model.config.n_embd
    ids = torch.tensor([window.ids])
    forget = collate(run.context.windows.forget, run.context.pad_id)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        run.context.model.eval()
        with torch.no_grad():
            return run.context.model(input_ids=tokens).logits

    before, was = logits(ids), logits(forget.ids)
    for _ in range(10):
        run.step()
    moved = (logits(forget.ids) - was).abs().max()
    assert (logits(ids) - before).abs().max() < 1e-4 * moved and moved > 0.1


def test_the_second_moment_is_of_real_tokens_and_layers_with_the_same_input_share_it(tiny):
    run = tiny.open("llama", guard_rail={"kind": "null_space"}, lora={"modules": "q_proj,v_proj,up_proj"})
    layers = list(dict.fromkeys(name.partition(".lora_")[0] for name in run.context.adapter.parts()))
    windows = retain_samples(run.context, run.config.guard_rail, 1)[:3]
    given: dict[str, list] = {layer: [] for layer in layers}
    hooks = [
        run.context.model.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: given[layer].append(inputs[0])
        )
        for layer in layers
    ]
    tokens = collate(windows, run.context.pad_id)
    with run.context.reference() as model:
        model(input_ids=tokens.ids, attention_mask=tokens.mask)
    for hook in hooks:
        hook.remove()
    moments = InputCovariance(run.context.model, layers)
    with run.context.reference() as model, moments:
        for window in windows:
            model(input_ids=torch.tensor([window.ids]))
            moments.seen = None
    assert len(moments.sums) == 4 and set(moments.owners) == set(layers)
    for layer in layers:
        real = given[layer][0][tokens.mask.bool()].double()
        shared = moments.sums[moments.owners[layer]]
        torch.testing.assert_close(shared, real.T @ real, rtol=1e-4, atol=1e-4)
    assert not any(run.context.model.get_submodule(layer)._forward_pre_hooks for layer in layers)
    distinct = {id(basis) for basis in run.update.rail.bases.values()}
    assert len(distinct) == 4 < len(run.update.rail.bases) == 6


def test_the_fewest_directions_with_that_energy_are_taken():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, 12)
    moment = inputs.T @ inputs
    sizes = torch.linalg.svdvals(inputs) ** 2
    for energy in (0.3, 0.9, 0.97, 0.999, 1.0):
        basis = leading_directions(moment, energy).double()
        kept = (inputs @ basis).square().sum() / sizes.sum()
        assert kept >= energy - 1e-7
        fewer = sizes[: basis.shape[1] - 1].sum() / sizes.sum()
        assert fewer < energy
    few = inputs[:5]
    assert leading_directions(few.T @ few, 1.0).shape == (12, 5), "no direction of rounding"
    assert leading_directions(torch.zeros(12, 12, dtype=torch.float64), 0.9).shape == (12, 0)


@pytest.mark.slow
def test_more_energy_protects_more_and_where_nothing_is_left_it_says_so(tiny):
    shares = [
        tiny.open(guard_rail={"kind": "null_space", "energy": energy}).step().values["protected_share"]
        for energy in (0.5, 0.8, 0.95)
    ]
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    with pytest.raises(ConfigError, match=r"guard_rail.energy is 1: .* all 32 inputs of transformer.*Set it lower"):
        tiny.open(guard_rail={"kind": "null_space", "energy": 1.0})


def test_a_fresh_adapter_is_projected_before_step_one_and_nothing_else_changes(tiny):
    railed, free = tiny.open(guard_rail={"kind": "null_space"}), tiny.open(guard_rail={"kind": "none"})
    assert railed.baseline == free.baseline
    for layer, a in parts_of(railed, "A").items():
        basis, whole = railed.update.rail.bases[layer], parts_of(free, "A")[layer]
        torch.testing.assert_close(a, whole - whole @ basis @ basis.T, rtol=0, atol=1e-6)
    assert not any(b.any() for b in parts_of(railed, "B").values())


@pytest.mark.slow
def test_of_an_adapter_that_is_gone_on_with_only_the_change_is_held_off(tiny, request_one):
    run = tiny.open(model={"adapter": str(request_one)}, guard_rail={"kind": "null_space", "energy": 0.8})
    saved = load_file(request_one / "adapter_model.safetensors")
    for _ in range(3):
        run.step()
    for layer, a in parts_of(run, "A").items():
        basis, began = run.update.rail.bases[layer], saved[f"{layer}.lora_A.weight"]
        assert ((a - began) @ basis).norm() < 1e-6 * a.norm() < (began @ basis).norm()
        assert (a - began).norm() > 1e-3 * a.norm()


# ------------------------------------------------------------------------------------------------ earlier adapters


@pytest.fixture(scope="session")
def request_one(tiny, tmp_path_factory):
    """The adapter of a first request, as a run saves it."""
    return _request(tiny, tmp_path_factory.mktemp("requests") / "one", lora={"rank": 3})


@pytest.fixture(scope="session")
def request_two(tiny, tmp_path_factory):
    """Of a second one, on other layers too, and with another scale."""
    settings = {"lora": {"rank": 2, "alpha": 6.0, "modules": "q_proj,k_proj"}, "seed": 1}
    return _request(tiny, tmp_path_factory.mktemp("requests") / "two", **settings)


def _request(tiny, folder, **settings):
    torch.manual_seed(0)
    run = tiny.open(optimizer={"learning_rate": 3e-2}, **settings)
    for _ in range(4):
        run.step()
    run.save(folder, whole=False)
    return folder


def alone(tiny, *folders) -> torch.nn.Module:
    """The base model with saved adapters, by PEFT's own ways."""
    base, _ = load_base(tiny.root / "gptj")
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(str(folder), adapter_name=str(number))
    model.base_model.set_adapter([str(number) for number in range(len(folders))])
    return model.eval()


def logits_of(model, run) -> torch.Tensor:
    tokens = collate(run.context.windows.forget[:4], run.context.pad_id)
    model.eval()
    with torch.no_grad():
        return model(input_ids=tokens.ids, attention_mask=tokens.mask).logits


@pytest.mark.parametrize("optimizer", some_quick(OPTIMIZERS))
def test_a_new_adapter_reads_nothing_that_an_earlier_one_reads(tiny, request_one, request_two, optimizer):
    run = tiny.open(
        model={"earlier": [str(request_one), str(request_two)]},
        guard_rail={"kind": "earlier_adapters"},
        optimizer=OPTIMIZERS[optimizer],
    )
    for _ in range(5):
        run.step()
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (request_one, request_two))
    for layer, a in parts_of(run, "A").items():
        kinds = [saved[name] for saved in (first, second) if (name := f"{layer}.lora_A.weight") in saved]
        assert kinds and run.update.rail.bases[layer].shape[1] == sum(map(len, kinds))
        for earlier in kinds:
            assert (a @ earlier.T).norm() < 1e-5 * a.norm() * earlier.norm()
        assert parts_of(run, "B")[layer].any()
    assert 0 < run.update.rail.values()["protected_share"] < 1


def test_an_earlier_adapter_is_on_from_the_start_stays_as_it_is_and_is_the_reference(tiny, request_one):
    run = tiny.open(model={"earlier": [str(request_one)]})
    expected = logits_of(alone(tiny, request_one), run)
    assert torch.equal(logits_of(run.context.model, run), expected)
    frozen = {name: p.detach().clone() for name, p in run.context.model.named_parameters() if "earlier_" in name}
    assert frozen and all(p.dtype == torch.float32 for p in frozen.values())
    for _ in range(3):
        run.step()
    with run.context.reference() as model:
        assert torch.equal(logits_of(model, run), expected)
    assert not torch.equal(logits_of(run.context.model, run), expected)
    now = dict(run.context.model.named_parameters())
    assert all(torch.equal(now[name], value) and not now[name].requires_grad for name, value in frozen.items())
    assert not any("earlier_" in name for name in run.context.adapter.parts())
    assert set(run.context.loaded.modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize("kind", some_quick(["earlier_adapters", "retain_subspace"]))
def test_each_request_can_be_taken_away_by_itself(tiny, tmp_path, request_one, kind):
    """The second adapter is saved alone; without it the first is what it was, and the other way round, to the bit."""
    run = tiny.open(model={"earlier": [str(request_one)]}, guard_rail={"kind": kind})
    for _ in range(3):
        run.step()
    both = logits_of(run.context.model, run)
    run.save(tmp_path / "new", whole=False)
    names = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert len(names) == 8 and not (tmp_path / "new" / "earlier_0").exists()
    assert torch.equal(logits_of(alone(tiny, tmp_path / "new", request_one), run), both)
    for name, folder in (("earlier_0", request_one), ("default", tmp_path / "new")):
        run.context.model.base_model.set_adapter([name])
        assert torch.equal(logits_of(run.context.model, run), logits_of(alone(tiny, folder), run))


@pytest.mark.slow
def test_requests_can_follow_one_another_and_each_is_gone_on_with_from_a_checkpoint(tiny, tmp_path, request_one):
    settings = {"model": {"earlier": [str(request_one)]}, "guard_rail": {"kind": "earlier_adapters"}}
    run = tiny.open(**settings)
    run.step()
    run.save(tmp_path / "second", whole=True)
    expected = values_of(run.step())
    again = Unlearner(tiny.config(**settings))
    again.restore(tmp_path / "second")
    assert values_of(again.step()) == expected
    third = tiny.open(model={"earlier": [str(request_one), str(tmp_path / "second")]}, guard_rail={"kind": "none"})
    assert torch.equal(
        logits_of(third.context.model, third), logits_of(alone(tiny, request_one, tmp_path / "second"), third)
    )
    without = Unlearner(tiny.config(guard_rail={"kind": "none"}))
    with pytest.raises(ConfigError, match="made with other earlier adapters than none"):
        without.restore(tmp_path / "second")


@pytest.mark.parametrize(
    "damage", some_quick(["gone", "no lora", "weights", "shape", "twice", "as adapter too", "other layers"], 2)
)
def test_an_earlier_adapter_that_cannot_be_is_refused_by_its_name(tiny, tmp_path, request_one, damage):
    folder = tmp_path / "earlier"
    if damage != "gone":
        shutil.copytree(request_one, folder)
    config = folder / "adapter_config.json"
    earlier, adapter, said = [str(folder)], "", ""
    match damage:
        case "gone":
            said = "no folder of that name"
        case "no lora":
            config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
            said = "its peft_type is 'IA3'"
        case "weights":
            (folder / "adapter_model.safetensors").unlink()
            said = "has no weights"
        case "shape":
            config.write_text(config.read_text().replace('"r": 3', '"r": 5'))
            said = "does not fit this model: .* has the shape"
        case "twice":
            earlier, said = [str(folder)] * 2, "Name it once"
        case "as adapter too":
            adapter, said = str(folder), "and model.adapter is"
        case "other layers":
            config.write_text(config.read_text().replace('"q_proj"', '"query_proj"').replace('"v_proj"', '"value"'))
            said = "does not fit this model"
    with pytest.raises(ConfigError, match=said) as caught:
        Unlearner(tiny.config(model={"earlier": earlier, "adapter": adapter}))
    sentence = str(caught.value)
    assert sentence.startswith("model.earlier is") and str(folder) in sentence
    assert "\n" not in sentence and sentence.endswith(".")


# ------------------------------------------------------------------------------------------------------ out and in

KINDS = {
    "rolling rows of samples": {"rows": "sample", "history": 3},
    "rows of logits, by layer": {"rows": "logit", "scope": "layer"},
    "rolling, by layer, by drift": {"scope": "layer", "history": 2, "refresh": "drift", "drift": 0.2},
    "by drift, on the gradient": {"refresh": "drift", "drift": 0.2, "apply_to": "gradient"},
    "one-sided": {"kind": "one_sided", "neighbours": True},
    "one-sided, rolling, by layer": {"kind": "one_sided", "history": 3, "scope": "layer", "every": 2},
    "one-sided, on the gradient, by drift": {
        "kind": "one_sided", "apply_to": "gradient", "refresh": "drift", "drift": 0.2,
    },
    "null space": {"kind": "null_space", "energy": 0.9},
    "separate states": {"optimizer_states": "separate"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(KINDS, 2))
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny, tmp_path, name):
    settings = {"guard_rail": KINDS[name], "method": {"name": "grad_diff"}}
    whole = tiny.open(**settings)
    expected = []
    for number in range(9):
        if number in (0, 1, 5):
            whole.save(tmp_path / str(number), whole=True)
        expected.append(values_of(whole.step()))
    again = Unlearner(tiny.config(**settings))
    for at in (5, 1, 0):
        again.restore(tmp_path / str(at))
        assert [values_of(again.step()) for _ in range(9 - at)] == expected[at:]
        assert torch.equal(again.context.adapter.values, whole.context.adapter.values)
    state = whole.update.rail.tensors()
    kept = {key: value.clone() for key, value in state.items()}
    again.update.rail.restore(kept)
    assert state.keys() == again.update.rail.tensors().keys()
    assert all(torch.equal(value, state[key]) for key, value in again.update.rail.tensors().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ({"kind": "none"}, {}), ({}, {"scope": "layer"}), ({"scope": "layer"}, {}), ({}, {"kind": "one_sided"}),
        ({"kind": "one_sided"}, {}), ({}, {"kind": "null_space"}), ({"kind": "null_space"}, {}), ({}, {"history": 3}),
        ({"kind": "null_space", "energy": 0.5}, {"kind": "null_space", "energy": 0.9}), ({}, {"refresh": "drift"}),
    ],
)  # fmt: skip
def test_a_branch_with_another_rail_is_protected_from_its_first_step(tiny, tmp_path, was, becomes):
    """Whatever the old one has left: it is taken up where it fits, and else made anew."""

    def settings(rail: dict) -> dict:
        return overlay({"guard_rail": {"every": 9}}, {"guard_rail": rail})

    parent = tiny.open(**settings(was))
    for _ in range(4):
        parent.step()
    parent.save(tmp_path / "4", whole=True)
    child = Unlearner(tiny.config(**settings(becomes)))
    child.restore(tmp_path / "4")
    update = change(child)
    if becomes.get("kind") == "null_space":
        a_parts = {name: part for name, part in child.context.adapter.parts().items() if ".lora_A." in name}
        for name, part in a_parts.items():
            basis = child.update.rail.bases[name.partition(".lora_")[0]]
            assert (update[part].view(-1, 32) @ basis).norm() < 1e-4 * update[part].norm()
        fresh = tiny.open(guard_rail=becomes)
        assert child.update.rail.values() == fresh.update.rail.values()
    elif becomes.get("kind") == "one_sided":
        assert cosines(child.update.rail.mean[None], update).item() < 1e-5 and child.update.rail.mean.any()
    else:
        assert child.update.rail.spaces
        for name, space in child.update.rail.spaces.items():
            assert cosines(space.rows, update[child.update.rail.spans[name]]).abs().max() < 1e-5


def test_no_rail_where_none_is_wanted_and_the_windows_of_the_measurement_are_not_its_samples(tiny):
    assert make_rail(tiny.open(guard_rail={"kind": "none"})) is None
    run = tiny.open()
    measured = set(run.evaluation.of("holdout"))
    assert measured and EVALUATED["holdout"] >= len(measured)
    assert not measured & set(
        itertools.chain.from_iterable(
            retain_samples(run.context, run.config.guard_rail, number) for number in (1, 2, 3)
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(KINDS, 2))
def test_what_a_rail_keeps_is_counted_before_the_model_is_loaded(tiny, name):
    run = tiny.open(guard_rail=KINDS[name])
    for _ in range(5):
        run.step()
    found = estimate_for(run.config, run.shape, run.context.model.dtype)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in run.update.rail.tensors().values())
    gradient = run.context.adapter.gradient.numel() * 4
    assert kept + gradient <= found.gradients
