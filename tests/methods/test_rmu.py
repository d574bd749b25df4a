"""Hidden states after a layer, on every architecture; and what misdirection of representations promises in formulas."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.test_architectures import ARCHITECTURES
from unlearn_core.methods import METHODS
from unlearn_core.model.adapters import AdapterVector, with_adapter
from unlearn_core.model.batches import Batch, collate
from unlearn_core.model.hidden import blocks, hidden_after
from unlearn_core.model.load import checkpoint_gradients
from unlearn_core.model.logits import by_group
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import LoraSettings

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

IDS = torch.tensor([[5, 9, 30, 2, 7, 11], [8, 4, 17, 0, 0, 0]])
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def bare(name: str, depth: int = 3):
    """A random model of an architecture, with three layers, the same numbers each time."""
    torch.manual_seed(5)
    given = ARCHITECTURES[name][0].items()
    size = {key: depth if key in ("n_layer", "num_hidden_layers") else value for key, value in given}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, vocab_size=64, **size, **ENDS)).eval()


def rmu(**knobs):
    return METHODS["rmu"](**knobs)


@pytest.fixture
def run(tiny):
    return tiny.open(method={"name": "rmu"}, lora={"dropout": 0.0}, guard_rail={"kind": "none"})


@pytest.fixture
def moved(run):
    """A run some steps away from its reference."""
    for _ in range(5):
        run.step()
    return run


def batch_of(run, forget: int = 3, retain: int = 3) -> Batch:
    """Windows of different lengths, so that there is padding, and with context before the target."""
    few = sorted(run.context.windows.forget, key=len)
    chosen = [few[0], few[len(few) // 2], few[-1]][:forget]
    return Batch(
        collate(chosen, run.context.pad_id), collate(run.context.windows.retain[:retain], run.context.pad_id), None
    )


# ---------------------------------------------------------------------------------------------- hidden states


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_hidden_state_is_what_the_model_itself_calls_so_bare_and_with_an_adapter(name):
    base = bare(name)
    assert len(blocks(base)) == 3
    with torch.no_grad():
        expected = base(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
        found = [hidden_after(base, layer, IDS, MASK) for layer in (1, 2)]
        after_all = hidden_after(base, 3, IDS, MASK)
    for layer, states in enumerate(found, 1):  # behind padding, an architecture may say what it likes
        torch.testing.assert_close(states[MASK.bool()], expected[layer][MASK.bool()])
    assert after_all.shape == expected[3].shape
    wrapped = with_adapter(base, LoraSettings(rank=2), 0).eval()
    assert blocks(wrapped) is blocks(base)
    with torch.no_grad():
        torch.testing.assert_close(hidden_after(wrapped, 2, IDS, MASK), found[1])


def test_what_comes_behind_the_layer_is_not_run_and_no_hook_stays():
    base, ran = bare("llama"), []
    for number, block in enumerate(blocks(base), 1):
        block.register_forward_hook(lambda module, inputs, output, number=number: ran.append(number))
    hidden_after(base, 2, IDS, MASK)
    assert ran == [1, 2]
    hidden_after(base, 1, IDS, MASK)
    assert ran == [1, 2, 1]
    base(input_ids=IDS)
    assert ran == [1, 2, 1, 1, 2, 3]


def test_experts_and_towers_for_images_are_not_taken_for_the_layers():
    from torch import nn

    many = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    layer = nn.ModuleDict({"experts": many})
    text = nn.ModuleList([layer, nn.Linear(2, 2)])
    model = nn.ModuleDict({"vision_tower": nn.ModuleList(nn.Linear(2, 2) for _ in range(7)), "text": text})
    assert blocks(model) is text
    with pytest.raises(ConfigError, match="keeps its layers in no list"):
        blocks(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["gptj", "llama", "gpt2", "opt", "qwen2"])
def test_computing_activations_again_gives_the_same_gradient_of_a_hidden_state(name):
    gradients = []
    for again in (False, True):
        base = bare(name)
        if again:
            checkpoint_gradients(base, name)
        model = with_adapter(base, LoraSettings(rank=2, dropout=0.0), 0).train()
        vector = AdapterVector(model)
        with torch.no_grad():
            vector.values.add_(0.05)
        torch.manual_seed(1)
        gradients.append(vector.gradient_of(hidden_after(model, 2, IDS, MASK).square().sum()))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ RMU


@pytest.mark.slow
def test_the_direction_is_one_unit_vector_whatever_was_drawn_before_and_in_another_process():
    method = rmu()
    torch.manual_seed(1)
    first, state = method.unit_vector(192), torch.get_rng_state()
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(first, method.unit_vector(192)) and torch.equal(first, rmu(steering=9.0).unit_vector(192))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # nothing else is drawn differently for it
    assert first.norm().item() == pytest.approx(1) and first.min() >= 0
    assert not torch.allclose(first, rmu(direction=1).unit_vector(192))
    code = "from unlearn_core.methods import METHODS; print(METHODS['rmu']().unit_vector(192).tolist())"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert json.loads(told.stdout) == first.tolist()
    ones = torch.ones(4096) / 64
    assert (rmu().unit_vector(4096) @ ones).item() == pytest.approx(0.866, abs=0.01)  # what LayerNorm takes away


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gptj", "llama"])
@pytest.mark.parametrize("tokens", ["labelled", "all"])
def test_the_loss_is_its_formula_on_the_models_own_hidden_states_one_window_at_a_time(tiny, kind, tokens):
    run = tiny.open(kind, method={"name": "rmu"}, lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    for _ in range(3):
        run.step()
    batch, u = batch_of(run), rmu(direction=4).unit_vector(32)

    def states(window):
        ids = torch.tensor([window.ids])
        with torch.no_grad():
            now = run.context.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
            with run.context.reference() as model:
                return now, model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]

    pushed, adapted, kept = [], [], []
    for window in batch.forget.windows:
        now, was = (part[window.first_loss if tokens == "labelled" else 0 :] for part in states(window))
        pushed += [(h - 20 * u).square().sum() for h in now]
        adapted += [(h - 1.5 * before.norm() * u).square().sum() for h, before in zip(now, was, strict=True)]
    for window in batch.retain.windows:
        now, was = states(window)
        kept += [(h - before).square().sum() for h, before in zip(now, was, strict=True)]
    for expected, knobs in ((pushed, {"adaptive": False, "steering": 20.0}), (adapted, {"steering": 1.5})):
        method = rmu(layer=1, direction=4, tokens=tokens, retain_weight=7.0, **knobs)
        found = method.loss(run.update.model, batch, run.context.reference)
        torch.testing.assert_close(found.forget, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.retain, 7 * torch.stack(kept).mean(), rtol=1e-3, atol=1e-6)


def test_on_one_text_the_published_form_is_ours_but_for_the_models_width(moved):
    """Published: means over the width, over a text's labelled tokens, then over texts. Ours weighs tokens alike."""
    alone, together = batch_of(moved, 1), batch_of(moved, 3)
    method, u = rmu(layer=1, adaptive=False, steering=6.5), rmu().unit_vector(32)

    def published(tokens) -> float:
        found = []
        for ids, mask, labels in by_group(tokens):
            states = hidden_after(moved.context.model, 1, ids, mask)
            chosen = torch.nn.functional.pad(labels != -100, (1, 0)).float()
            far = (states - 6.5 * u).square().mean(2)
            found.append((far * chosen).sum(1) / chosen.sum(1))
        return torch.cat(found).mean().item()

    ours = [
        method.loss(moved.update.model, batch, moved.context.reference).forget.item() / 32
        for batch in (alone, together)
    ]
    assert ours[0] == pytest.approx(published(alone.forget), rel=1e-5)
    assert ours[1] == pytest.approx(published(together.forget), rel=0.2)


def test_a_hidden_state_that_is_where_it_is_steered_to_has_no_loss(run):
    aim = 11.0 * rmu(direction=3).unit_vector(32)

    def there(module, inputs, output):
        states = output if isinstance(output, torch.Tensor) else output[0]
        states = 0 * states + aim
        return states if isinstance(output, torch.Tensor) else (states, *output[1:])

    handle = blocks(run.context.model)[0].register_forward_hook(there)
    method = rmu(layer=1, adaptive=False, steering=11.0, direction=3)
    objective = method.loss(run.update.model, batch_of(run), run.context.reference)
    handle.remove()
    assert objective.forget.item() == pytest.approx(0, abs=1e-6)
    assert objective.values["hidden_length"] == pytest.approx(11) == objective.values["steered_length"]


def test_what_is_kept_costs_nothing_at_the_reference_and_something_away_from_it(run):
    keep = rmu().loss(run.update.model, batch_of(run), run.context.reference).retain
    assert keep.item() == 0 and not run.context.adapter.gradient_of(keep).any()
    for _ in range(3):
        run.step()
    assert rmu().loss(run.update.model, batch_of(run), run.context.reference).retain.item() > 0
    assert rmu(retain_weight=0.0).loss(run.update.model, batch_of(run), run.context.reference).retain is None


def test_layers_behind_the_one_that_is_steered_get_no_gradient(moved):
    batch = batch_of(moved)
    for layer, reached in ((1, {0}), (2, {0, 1})):
        objective = rmu(layer=layer).loss(moved.update.model, batch, moved.context.reference)
        gradient = moved.context.adapter.gradient_of(objective.forget + objective.retain)
        moving = {
            int(name.split(".h.")[1].split(".")[0])
            for name, part in moved.context.adapter.parts().items()
            if gradient[part].any()
        }
        assert moving == reached


def test_padding_changes_nothing(moved):
    """The same windows beside a longer one, whose place among the rows pads them."""
    short = sorted(moved.context.windows.forget, key=len)[:2]
    method = rmu(layer=1, tokens="all", adaptive=False)
    alone = [method.loss(moved.update.model, Batch(collate([w], 0), None, None), None).forget.item() for w in short]
    count = [len(window) for window in short]
    expected = sum(loss * n for loss, n in zip(alone, count, strict=True)) / sum(count)
    found = method.loss(moved.update.model, Batch(collate(short, 0), None, None), None).forget.item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_layer_is_about_a_third_of_the_depth_or_one_that_there_is(run):
    assert rmu().chosen_layer(run.context.model) == 1 and rmu(layer=2).chosen_layer(run.context.model) == 2
    assert rmu().chosen_layer(bare("llama")) == 1 and rmu().chosen_layer(bare("llama", 4)) == 2
    with pytest.raises(ConfigError, match="method.layer is 3; this model has 2"):
        rmu(layer=3).loss(run.update.model, batch_of(run), run.context.reference)


@pytest.mark.slow
def test_steering_brings_hidden_states_nearer_to_where_they_shall_be(tiny):
    settings = {"name": "rmu", "retain_weight": 0.0}
    run = tiny.open(method=settings, lora={"dropout": 0.0}, guard_rail={"kind": "none"})
    losses = [run.step().values["objective"] for _ in range(15)]
    assert losses[-1] < 0.95 * losses[0]


def test_with_the_weights_themselves_what_lies_behind_the_layer_stays_to_the_bit(tiny):
    run = tiny.open(method={"name": "rmu"}, where={"kind": "full"}, guard_rail={"kind": "none"})
    before = {name: p.detach().clone() for name, p in run.context.model.named_parameters()}
    for _ in range(3):
        assert math.isfinite(run.step().values["steered_length"])
    moving = {name for name, p in run.context.model.named_parameters() if not torch.equal(p, before[name])}
    assert moving and all(name.startswith(("transformer.wte", "transformer.h.0.")) for name in moving)
