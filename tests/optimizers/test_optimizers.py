"""Optimizers that torch does not have: their formulas by hand, and what they promise of themselves."""

from __future__ import annotations

import pytest
import torch

from tests.quick import some_quick
from unlearn_core.optimizers import OPTIMIZERS
from unlearn_core.optimizers.sophia_soul import TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")


def vector(count: int = 50, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(count, generator=torch.Generator().manual_seed(seed)))


def gradients(steps: int, count: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, generator=generator) for _ in range(steps)]


def test_lion_steps_by_its_learning_rate_in_every_entry_along_the_sign_of_its_two_momenta():
    values = vector()
    made = OPTIMIZERS["lion"]([values], 0.01, weight_decay=0.1)
    expected, momentum = values.detach().clone(), torch.zeros(50)
    for gradient in gradients(5):
        values.grad = gradient.clone()
        made.step()
        direction = torch.sign(0.9 * momentum + 0.1 * gradient)
        expected = expected * (1 - 0.001) - 0.01 * direction
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(values.detach(), expected)


def test_sophia_divides_by_the_curvature_clips_every_entry_and_tells_how_many_it_did_not():
    values = vector()
    made = OPTIMIZERS["sophia"]([values], 0.01)
    before = values.detach().clone()
    estimate = torch.linspace(0.0, 1.0, 50)
    made.curvature(estimate, 1000)
    (gradient,) = gradients(1)
    values.grad = gradient.clone()
    made.step()
    momentum, hessian = 0.035 * gradient, 0.01 * 1000 * estimate**2
    ratio = momentum.abs() / (0.04 * hessian + 1e-15)
    torch.testing.assert_close(values.detach(), before - 0.01 * momentum.sign() * ratio.clamp(max=1))
    assert made.unclipped_share == pytest.approx((ratio < 1).float().mean().item())
    assert 0 < made.unclipped_share < 1
    assert (values.detach() - before).abs().max() <= 0.01 + 1e-7


@pytest.mark.parametrize("name", ["sophia", "sophia_soul"])
def test_entries_without_momentum_do_not_count_as_unclipped(name):
    """A fresh adapter's A has no gradient in step 1: the share is that of the rest, which is what rho is tuned by."""
    shares = []
    for idle in (0, 350):
        values = vector(50 + idle)
        made = OPTIMIZERS[name]([values], 0.01)
        made.curvature(torch.cat([torch.linspace(0.0, 1.0, 50), torch.zeros(idle)]), 1000)
        values.grad = torch.cat([0.3 * gradients(1)[0], torch.zeros(idle)])
        made.step()
        shares.append(made.unclipped_share)
    assert shares[0] == shares[1] > 0
    values.grad = torch.zeros(400)
    made = OPTIMIZERS[name]([values], 0.01)
    made.step()
    assert made.unclipped_share == 0


def test_sophia_without_curvature_is_a_sign_step():
    values = vector()
    made = OPTIMIZERS["sophia"]([values], 0.01)
    before = values.detach().clone()
    values.grad = gradients(1)[0].clone()
    made.step()
    torch.testing.assert_close(values.detach(), before - 0.01 * values.grad.sign())
    assert made.unclipped_share == 0


def test_sophia_as_soul_ran_it_squares_its_own_gradient_and_gathers_twice():
    """With a gradient as small as a language model's, nearly nothing is unclipped."""
    values = vector()
    made = OPTIMIZERS["sophia_soul"]([values], 0.01)
    momentum, hessian, expected = torch.zeros(50), torch.zeros(50), values.detach().clone()
    for gradient in gradients(4):
        values.grad = 0.3 * gradient
        made.step()
        momentum = 0.81 * momentum + 0.19 * values.grad
        hessian = 0.95 * hessian + 0.05 * TOKENS * values.grad**2
        ratio = momentum.abs() / (0.04 * hessian + 1e-15)
        expected -= 0.01 * momentum.sign() * ratio.clamp(max=1)
    torch.testing.assert_close(values.detach(), expected)
    assert made.unclipped_share > 0.5
    small = vector()
    made = OPTIMIZERS["sophia_soul"]([small], 0.01)
    for gradient in gradients(4):
        small.grad = 1e-3 * gradient
        made.step()
    assert made.unclipped_share < 0.1


def test_the_curvature_of_a_run_is_that_of_labels_drawn_from_the_model_and_leaves_the_gradient_alone(tiny):
    run = tiny.open(optimizer={"name": "sophia"}, lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    for _ in range(2):
        run.step()
    batch = run.draws.batch(3)
    run.context.adapter.gradient.copy_(torch.arange(run.context.adapter.gradient.numel()).float())
    hessian = run.update.optimizer.state[run.context.adapter.values]["hessian"].clone()
    assert run.update.measure_curvature(3, batch) == 0  # not due
    torch.testing.assert_close(run.update.optimizer.state[run.context.adapter.values]["hessian"], hessian)
    torch.manual_seed(5)
    assert run.update.measure_curvature(11, batch) > 0
    after = run.update.optimizer.state[run.context.adapter.values]["hessian"]
    assert (after - 0.99 * hessian >= -1e-12).all() and (after != hessian).any()
    assert torch.equal(run.context.adapter.gradient, torch.arange(run.context.adapter.gradient.numel()).float())


def test_the_curvature_of_a_run_by_the_model_s_own_forward_pass_and_torch_s_own_gradient(tiny):
    """Algorithm 2 of its paper: tokens times the square of the gradient of the mean loss on drawn labels."""
    settings = {"method": {"name": "grad_diff"}, "schedule": {"batch_size": 1}, "guard_rail": {"kind": "none"}}
    run = tiny.open(optimizer={"name": "sophia"}, lora={"dropout": 0.0}, **settings)
    run.step()
    batch, model = run.draws.batch(11), run.context.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = run.update.optimizer.state[run.context.adapter.values]["hessian"].clone()
    torch.manual_seed(5)
    run.update.measure_curvature(11, batch)
    found = run.update.optimizer.state[run.context.adapter.values]["hessian"] - 0.99 * before
    torch.manual_seed(5)
    losses, true = [], []
    for tokens in (batch.forget, batch.retain):
        (window,) = tokens.windows
        logits = model(input_ids=torch.tensor([window.ids])).logits[0, max(window.first_loss, 1) - 1 : -1]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1)
        losses.append(torch.nn.functional.cross_entropy(logits, drawn, reduction="none"))
        true.append(drawn == torch.tensor(window.ids[-len(drawn) :]))
    losses = torch.cat(losses)
    assert not torch.cat(true).all() and len(losses) > 10
    gradient = torch.cat([each.reshape(-1) for each in torch.autograd.grad(losses.mean(), parameters)])
    torch.testing.assert_close(found, 0.01 * len(losses) * gradient**2, rtol=1e-2, atol=1e-3 * found.max().item())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_decay_by_rate_times_decay_beside_the_step(name):
    """Decoupled, as AdamW does it: the same step is taken, from values that are smaller by that share."""
    moved = {}
    for decay in (0.0, 0.25):
        values = vector()
        made = OPTIMIZERS[name]([values], 0.01, weight_decay=decay)
        for gradient in gradients(3):
            before = values.detach().clone()
            values.grad = gradient.clone()
            made.step()
        moved[decay] = values.detach() - before * (1 - 0.01 * decay)
    torch.testing.assert_close(moved[0.25], moved[0.0], rtol=1e-4, atol=1e-7)
    assert moved[0.0].abs().max() > 1e-5


def test_both_optimizers_of_ascent_and_descent_in_turn_are_given_the_curvature(tiny):
    run = tiny.open(method={"name": "ac_dc"}, optimizer={"name": "sophia"}, guard_rail={"kind": "none"})
    run.step()
    ascent, descent = (
        each.state[run.context.adapter.values]["hessian"] for each in (run.update.optimizer, run.update.descender)
    )
    assert ascent.abs().sum() > 0
    torch.testing.assert_close(descent, ascent)


def test_drawn_labels_give_the_fisher_matrix_s_diagonal_on_average():
    """One token, three words: the mean of squared gradients over drawn labels is p (1 - p) for each logit."""
    from unlearn_core.model.losses import loss_of_sampled_labels

    torch.manual_seed(0)
    logits = torch.tensor([[0.5, -0.3, 1.2]]).repeat(20_000, 1).requires_grad_()
    loss_of_sampled_labels(logits, torch.zeros(20_000, dtype=torch.long), None).sum().backward()
    p = torch.tensor([0.5, -0.3, 1.2]).softmax(-1)
    torch.testing.assert_close(logits.grad.square().mean(0), p * (1 - p), rtol=0.03, atol=0)


@pytest.mark.parametrize("name", some_quick(OPTIMIZERS))
def test_a_resumed_run_is_the_uninterrupted_one(tiny, tmp_path, name):
    whole = tiny.open(optimizer={"name": name})
    for _ in range(3):
        whole.step()
    whole.save(tmp_path, whole=True)
    rest = [whole.step().values["update_norm"] for _ in range(9)]
    resumed = tiny.open(optimizer={"name": name})
    resumed.restore(tmp_path)
    assert [resumed.step().values["update_norm"] for _ in range(9)] == rest
    assert torch.equal(resumed.context.adapter.values, whole.context.adapter.values)
