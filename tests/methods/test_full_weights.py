"""Where the weights themselves are trained: the start is at hand without a second model; a step is a whole model."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from storage import RunStore
from storage.export import export_run
from tests.model.test_architectures import settings, zoo  # noqa: F401  (a fixture)
from tests.quick import some_quick
from unlearn_core.masks.base import make_mask
from unlearn_core.model import memory
from unlearn_core.model.batches import collate
from unlearn_core.model.losses import nll
from unlearn_core.model.memory import estimate_for, parts, shape_for
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import overlay
from unlearn_core.settings.sections import OWN_OPTIMIZERS
from unlearn_core.training.engine import Unlearner

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

FULL = {"where": {"kind": "full"}, "optimizer": {"learning_rate": 1e-3}}
RUNS = {
    "ascent, rail on the update": {},
    "npo with retain loss": {"method": {"name": "npo", "beta": 0.5}},
    "rail on the gradient, layer by layer": {"guard_rail": {"apply_to": "gradient", "scope": "layer"}},
    "sgd, momentum, no rail": {
        "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.05},
        "guard_rail": {"kind": "none"},
    },
    "heads and filters": {"where": {"kind": "full", "mask": "structure", "share": 0.3}},
}


def full(**sections) -> dict:
    """The sections of a run of full weights with `sections` laid over them."""
    return {name: {**FULL.get(name, {}), **sections.get(name, {})} for name in {**FULL, **sections}}


def values_of(record) -> dict[str, float]:
    return {name: value for name, value in record.values.items() if name != "step_seconds"}


def ids_of(run) -> torch.Tensor:
    return torch.tensor([run.context.windows.forget[0].ids])


def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def plain(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder)


# --------------------------------------------------------------------------------------------- one model, one vector


@pytest.mark.parametrize("kind", some_quick(["gptj", "llama"]))
def test_every_weight_is_trained_in_one_vector_and_moves(tiny, kind):
    run, model = tiny.open(kind, **full()), plain(tiny.root / kind)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert (
        {name: p.shape for name, p in run.context.model.named_parameters()}
        == shapes
        == {name: run.context.model.get_parameter(name).shape for name in run.context.adapter.parts()}
    )
    assert run.context.adapter.values.numel() == sum(p.numel() for p in model.parameters())
    before = run.context.adapter.values.detach().clone()
    for _ in range(2):
        run.step()
    storage = run.context.adapter.values.untyped_storage().data_ptr()
    for name, part in run.context.adapter.parts().items():
        parameter = run.context.model.get_parameter(name)
        assert parameter.requires_grad and parameter.untyped_storage().data_ptr() == storage
        assert torch.equal(parameter.flatten(), run.context.adapter.values[part])
        assert not torch.equal(run.context.adapter.values[part], before[part]), f"{name} has not moved"


@pytest.mark.parametrize("kind", some_quick(["gptj", "llama"]))
def test_the_reference_is_the_model_as_given_to_the_bit_and_the_run_s_own_comes_back_to_the_bit(tiny, kind):
    run, ids = tiny.open(kind, **full()), torch.arange(1, 40)[None]
    given = logits_of(plain(tiny.root / kind), ids)
    assert torch.equal(logits_of(run.context.model, ids), given)
    for _ in range(3):
        run.step()
        own, storage = (
            run.context.adapter.values.detach().clone(),
            run.context.adapter.values.untyped_storage().data_ptr(),
        )
        now = logits_of(run.context.model, ids)
        assert not torch.equal(now, given)
        with run.context.reference() as before:
            assert torch.equal(before(input_ids=ids).logits, given) and not before.training
        assert torch.equal(logits_of(run.context.model, ids), now) and torch.equal(run.context.adapter.values, own)
        assert all(p.untyped_storage().data_ptr() == storage for p in run.context.model.parameters())


def test_a_graph_that_waits_for_its_backward_pass_gets_the_same_gradient_across_the_reference(tiny):
    run = tiny.open("llama", **full())
    run.step()
    tokens = collate(run.context.windows.forget[:2], 0)
    expected = run.context.adapter.gradient_of(nll(run.context.model, tokens).token_mean)
    loss = nll(run.context.model, tokens).token_mean
    run.context.reference.nll(collate(run.context.windows.retain[:2], 0))
    assert torch.equal(run.context.adapter.gradient_of(loss), expected) and expected.any()


def test_a_model_given_in_another_format_is_trained_in_float32_and_saved_in_it(tiny, tmp_path):
    """Steps of unlearning are smaller than what bfloat16 can tell apart."""
    run = tiny.open("llama", **full(model={"dtype": "bfloat16"}))
    rounded = AutoModelForCausalLM.from_pretrained(tiny.root / "llama", dtype=torch.bfloat16).float()
    assert all(p.dtype == torch.float32 for p in run.context.model.parameters())
    assert torch.equal(logits_of(run.context.model, ids_of(run)), logits_of(rounded, ids_of(run)))
    run.step()
    run.save(tmp_path, whole=False)
    again = plain(tmp_path)
    assert again.dtype == torch.float32
    assert torch.equal(logits_of(again, ids_of(run)), logits_of(run.context.model, ids_of(run)))


# ------------------------------------------------------------------------------------------------- state out and in


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(RUNS))
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny, tmp_path, name):
    choice = full(**RUNS[name])
    whole, left = tiny.open("llama", **choice), tiny.open("llama", **choice)
    expected = [values_of(whole.step()) for _ in range(5)]
    for _ in range(3):
        left.step()
    left.save(tmp_path, whole=True)
    again = Unlearner(tiny.config("llama", **choice))
    again.restore(tmp_path)
    assert torch.equal(again.context.adapter.values, left.context.adapter.values)
    assert [values_of(again.step()) for _ in range(2)] == expected[3:]
    assert torch.equal(again.context.adapter.values, whole.context.adapter.values)
    ids = ids_of(whole)
    with again.context.reference() as one, whole.context.reference() as other:
        assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)


@pytest.mark.parametrize("name", some_quick(["gpt2", "qwen2", "gemma2", "mixtral", "bloom"]))
def test_a_step_is_a_whole_model_that_transformers_loads_with_the_same_logits(tiny, zoo, tmp_path, name):  # noqa: F811
    """Tied outputs (gpt2, qwen2, gemma2, bloom) stay tied, and experts go with it."""
    run = Unlearner(settings(tiny, zoo, name, **full()))
    run.measure_baseline()
    run.step(), run.step()
    run.save(tmp_path, whole=False)
    again = plain(tmp_path)
    assert torch.equal(logits_of(again, ids_of(run)), logits_of(run.context.model, ids_of(run)))
    assert not torch.equal(logits_of(plain(zoo / name), ids_of(run)), logits_of(run.context.model, ids_of(run)))
    tied = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied == (run.context.model.get_output_embeddings().weight is run.context.model.get_input_embeddings().weight)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= names and not any("adapter" in name for name in names)
    weights = sum(p.numel() * 4 for p in run.context.model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < weights * 1.01 + 100_000, "each weight once"


@pytest.mark.slow
def test_asking_an_earlier_step_leaves_the_run_s_own_weights_to_the_bit(tiny, tmp_path):
    run, untouched = tiny.open("llama", **full()), tiny.open("llama", **full())
    prompts, said = ["What is zorblatt?", "The cat"], {}
    for step in range(3):
        said[step] = [(a.response.text, a.target_probability) for a in run.answers(prompts)]
        run.save(tmp_path / str(step), whole=False)
        run.step(), untouched.step()
    own = run.context.adapter.values.detach().clone()
    for step in (1, 0, 2):
        found = run.answers_at(tmp_path / str(step), prompts)
        assert [(a.response.text, a.target_probability) for a in found] == said[step]
        assert torch.equal(run.context.adapter.values, own)
    assert values_of(run.step()) == values_of(untouched.step())


def test_weights_that_are_gone_cut_or_of_another_shape_are_refused_and_the_run_s_own_stay(tiny, tmp_path):
    run = tiny.open("llama", **full())
    run.step()
    run.save(tmp_path / "good", whole=True)
    own = run.context.adapter.values.detach().clone()
    with pytest.raises(ConfigError, match="step-000007 is not there"):
        run.answers_at(tmp_path / "step-000007", ["The cat"])
    file = tmp_path / "good" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    for use in (lambda: run.answers_at(tmp_path / "good", ["The cat"]), lambda: run.restore(tmp_path / "good")):
        with pytest.raises(ConfigError, match="good cannot be read"):
            use()
    tiny.open("gptj", **full()).save(tmp_path / "other", whole=False)
    with pytest.raises(ConfigError, match="other cannot be read"):
        run.answers_at(tmp_path / "other", ["The cat"])
    assert torch.equal(run.context.adapter.values, own)


def test_an_export_has_the_model_and_nothing_that_only_a_run_needs(tiny, tmp_path):
    run = tiny.open("llama", **full())
    run.step()
    store = RunStore(tmp_path / "home")
    facts = {"target": "zorblatt", "method": "grad_ascent", "provenance": {}, "seed": 0}
    run_id = store.create_run(name="whole", prompts=[], config=run.config.to_dict(), **facts)
    checkpoint = store.write_checkpoint(run_id, 1, True, lambda folder: run.save(folder, whole=True), "somewhere:1:x")
    store.place_checkpoint(checkpoint, "somewhere:1:x")
    store.append_step(run_id, 1, points={}, checkpoint=checkpoint)
    written = export_run(store, run_id, tmp_path / "out")
    assert [path.name for path in written] == ["points.csv", "responses.csv", "run.json", "model"]
    assert torch.equal(
        logits_of(plain(tmp_path / "out" / "model"), ids_of(run)), logits_of(run.context.model, ids_of(run))
    )
    assert not list((tmp_path / "out").rglob("state.*")) and export_run(store, run_id, tmp_path / "out") == written
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "llama"
    store.close()


# ------------------------------------------------------------------------------------------------------ its memory


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", some_quick(["adamw", "sgd", *OWN_OPTIMIZERS], 2))
def test_what_is_estimated_before_loading_is_what_there_is(tiny, optimizer, dtype):
    choice = full(model={"dtype": dtype}, optimizer={"name": optimizer, "learning_rate": 1e-4})
    run = tiny.open("llama", **choice)
    run.step()
    config = run.config
    shape = shape_for(config, tiny.root / "llama")
    found = estimate_for(config, shape, getattr(torch, dtype))
    assert found.adapter == bytes_of([run.context.adapter.values]) == bytes_of(run.context.model.parameters())
    assert found.weights == bytes_of([*run.context.loaded.start.values(), *run.context.model.buffers()])
    state = run.update.optimizer.state.get(run.context.adapter.values, {}).values()
    assert found.optimizer == bytes_of(value for value in state if isinstance(value, torch.Tensor))
    assert shape.full and shape.adapter == shape.weights == run.context.adapter.values.numel()
    assert parts(found, full=True).startswith("weights as they began ")


@pytest.fixture(scope="module")
def wide(tiny, tmp_path_factory) -> Path:
    """A model whose weights are many times what a short text leaves behind, so that vectors can be counted."""
    folder = tmp_path_factory.mktemp("wide") / "llama"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.root / "llama")
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": 96}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def allocated(use) -> tuple[int, int]:
    """Bytes that are allocated by a call: at most at once, and still afterwards."""
    gc.collect()  # what earlier tests have left would be freed meanwhile, and counted as if the call had given it back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        use()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak, live


STEPS = {
    "adamw": {"guard_rail": {"kind": "none"}},
    "sophia, retain loss": {
        "guard_rail": {"kind": "none"}, "optimizer": {"name": "sophia"}, "method": {"name": "grad_diff"},
    },
    "percentiles of a ratio": {"guard_rail": {"kind": "none"}, "method": {"name": "potion"}},
    "one row, retain loss": {"guard_rail": {"groups": 1, "batches": 1}, "method": {"name": "grad_diff"}},
    "six rows, mask": {"guard_rail": {"groups": 6, "batches": 6}, "where": {"mask": "saliency"}},
    "three refreshes": {"guard_rail": {"groups": 2, "batches": 2, "history": 3}},
    "one-sided": {"guard_rail": {"kind": "one_sided", "groups": 3, "batches": 3}},
    "separate states": {
        "guard_rail": {"groups": 2, "batches": 2, "optimizer_states": "separate"}, "method": {"name": "grad_diff"},
    },
    "drift": {"guard_rail": {"groups": 2, "batches": 2, "refresh": "drift", "apply_to": "gradient"}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(STEPS, 2))
def test_no_step_takes_more_than_was_said_nor_much_less(tiny, wide, name):
    choice = STEPS[name]
    few = {"schedule": {"batch_size": 1}, "data": {"window_tokens": 12}, "model": {"source": str(wide)}}
    rail = overlay({"guard_rail": {"batch_size": 1, "every": 1}}, {"guard_rail": choice["guard_rail"]})
    run = Unlearner(tiny.config(**full(**few, **{**choice, **rail})))
    run.measure_baseline()
    vector = run.context.adapter.values.numel() * 4
    there = [
        run.context.adapter.values,
        run.context.adapter.gradient,
        *run.context.loaded.start.values(),
        *run.context.method_state.values(),
    ]
    persistent = bytes_of([*there, run.context.mask] if run.context.mask is not None else there)
    peaks = []
    for _ in range(5):
        most, kept = allocated(run.step)
        peaks.append(persistent + most)
        persistent += kept
    found = estimate_for(run.config, run.shape, torch.float32, {name: [12] for name in run.context.windows.sets()})
    assert max(peaks) <= found.total
    assert found.total < 1.2 * max(peaks), [round(size / vector, 1) for size in (*peaks, found.total)]


def test_what_helps_is_named_and_what_does_not_is_not(tiny):
    config = tiny.config("llama", **full())
    found = replace(estimate_for(config, shape_for(config, tiny.root / "llama"), torch.float32), activations=0)
    advice = memory.ways_out(found, config, "cuda")
    assert advice[0] == "where.kind = lora" or "where.kind = lora" in advice[:2]
    assert not any(word in " ".join(advice) for word in ("dtype", "four_bit", "rank"))


def test_an_adapter_to_go_on_from_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="model.adapter .* where.kind"):
        tiny.config("llama", **full(model={"adapter": str(tmp_path)}))


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["saliency", "structure"])
@pytest.mark.parametrize("kind", some_quick(["full", "lora"]))
def test_making_a_mask_takes_no_more_than_was_said(tiny, wide, kind, mask):
    """By saliency, an adapter's mask needs gradients that are many times the adapter."""
    few = {"schedule": {"batch_size": 1}, "data": {"window_tokens": 12}, "model": {"source": str(wide)}}
    choice = {**few, "guard_rail": {"kind": "none"}, "where": {"kind": kind, "mask": mask}}
    run = Unlearner(tiny.config(**choice, lora={"rank": 2, "modules": "all-linear"}))
    assert run.context.windows.forget
    most, _ = allocated(lambda: make_mask(run.context))
    found = estimate_for(run.config, run.shape, torch.float32, {name: [12] for name in run.context.windows.sets()})
    gradient = run.context.adapter.gradient.numel() * 4
    assert gradient + most <= found.gradients + found.optimizer + found.activations
    if (kind, mask) == ("lora", "saliency"):
        assert gradient + most > 0.8 * found.gradients > 20 * gradient
