"""The estimate against the tensors that there really are; what does not fit is said before it is loaded."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from tests.quick import some_quick
from unlearn_core.model import load as models
from unlearn_core.model import memory
from unlearn_core.model.losses import nll
from unlearn_core.model.memory import (
    Plan,
    available,
    check_before_loading,
    check_step,
    estimate,
    estimate_for,
    free_in_container,
    parts,
    plan_of,
    shape_for,
)
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import OWN_OPTIMIZERS
from unlearn_core.training import engine
from unlearn_core.training.engine import Unlearner
from unlearn_core.world import FULL

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    "optimizer", [{"name": "sgd", "momentum": 0.9}, *({"name": name} for name in ("adamw", "sgd", *OWN_OPTIMIZERS))]
)
@pytest.mark.parametrize(
    "settings", [{}, {"lora": {"rank": 3, "modules": "all-linear"}}, {"model": {"dtype": "bfloat16"}}]
)
@pytest.mark.parametrize("kind", some_quick(["gptj", "llama"]))
def test_weights_adapter_and_optimizer_are_exactly_what_they_become(tiny, kind, settings, optimizer):
    config = tiny.config(kind, **settings, optimizer={**optimizer, "learning_rate": 0.01})
    dtype = getattr(torch, config.model.dtype) if config.model.dtype != "auto" else torch.float32
    found = estimate_for(config, shape_for(config, tiny.root / kind), dtype)
    run = Unlearner(config)
    run.measure_baseline()
    run.step()
    base = [p for p in run.context.model.parameters() if not p.requires_grad]
    assert found.weights == bytes_of([*base, *run.context.model.buffers()])
    assert (
        found.adapter
        == bytes_of([run.context.adapter.values])
        == bytes_of(p for p in run.context.model.parameters() if p.requires_grad)
    )
    state = run.update.optimizer.state.get(run.context.adapter.values, {}).values()
    assert found.optimizer == bytes_of(value for value in state if isinstance(value, torch.Tensor))
    assert found.gradients >= bytes_of([run.context.adapter.gradient, run.update.rail.space.rows])
    assert found.total == sum(getattr(found, part) for part in asdict(found) if part != "with_checkpointing")


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("kind", some_quick(["gptj", "llama"]))
def test_activations_are_about_what_autograd_keeps(tiny, kind, again):
    config = tiny.config(kind, model={"gradient_checkpointing": again}, schedule={"batch_size": 6})
    run = Unlearner(config)
    batch = run.draws.batch(1).forget
    run.context.model.train()
    known = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*run.context.model.parameters(), *run.context.model.buffers())
    }
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nll(run.context.model, batch)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    tokens = sum(len(group) * max(len(batch.windows[row]) for row in group) for group in batch.groups)
    longest = batch.ids.shape[1]
    plan = Plan(step_tokens=tokens, window=longest, dropout=True, checkpointing=again)
    found = estimate(run.shape, plan)
    assert 0.8 * measured < found.activations
    assert again or found.activations < 4 * measured  # in the backward pass a layer's are there again
    assert found.with_checkpointing < estimate(run.shape, Plan(step_tokens=tokens, window=longest)).activations


def test_the_distributions_that_a_teacher_keeps_for_measured_windows_are_counted(tiny):
    run = Unlearner(tiny.config("llama"))
    run.measure_baseline()
    teacher = run.evaluation.teacher(run.context.reference)
    lengths = {name: [len(window) for window in some] for name, some in run.context.windows.sets().items()}
    plan = plan_of(run.config, run.shape, torch.float32, lengths)
    without = replace(plan, taught_labels=0)
    counted = estimate(run.shape, plan).total - estimate(run.shape, without).total
    kept = bytes_of(teacher.probabilities)
    assert 0 < kept <= counted <= 3 * kept, "a window counts whole, and has fewer labels"
    whole = replace(run.config, data=replace(run.config.data, everything=True))
    assert plan_of(whole, run.shape, torch.float32, lengths) == without, "no name stands for whole texts"


def test_each_setting_moves_its_own_part_in_the_direction_that_is_advised(tiny):
    many = {"batch_size": 60}  # so that a step reads more than a measurement does
    config = tiny.config("llama", schedule=many)
    shape = shape_for(config, tiny.root / "llama")
    base = asdict(estimate_for(config, shape, torch.float32))

    def changed(dtype: torch.dtype = torch.float32, **sections) -> dict[str, int]:
        other = tiny.config("llama", **{"schedule": many, **sections})
        found = asdict(estimate_for(other, shape_for(other, tiny.root / "llama"), dtype))
        return {part: size - base[part] for part, size in found.items() if size != base[part]}

    assert set(changed(torch.bfloat16)) == {"weights", "activations", "with_checkpointing"}
    assert all(less < 0 for less in changed(torch.bfloat16).values())
    assert (
        set(changed(guard_rail={"kind": "none"})) >= {"gradients"}
        and changed(guard_rail={"kind": "none"})["gradients"] < 0
    )
    assert set(changed(model={"gradient_checkpointing": True})) == {"activations"}
    assert changed(schedule={"batch_size": 90})["activations"] > 0 > changed(data={"window_tokens": 8})["activations"]
    assert all(changed(lora={"rank": 2})[part] < 0 for part in ("adapter", "optimizer", "gradients"))
    four_bit = estimate(shape, Plan(bytes_per_weight=2, four_bit=True))
    assert four_bit.weights < estimate(shape, Plan(bytes_per_weight=2)).weights


def test_what_cannot_fit_is_refused_before_a_tensor_is_loaded_with_both_numbers(tiny, monkeypatch):
    config = tiny.config("llama")
    need = estimate_for(config, shape_for(config, tiny.root / "llama"), torch.float32).fixed
    monkeypatch.setattr(memory, "available", lambda device, spread=False: need - 1)
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ConfigError) as caught:
        Unlearner(config)
    sentence = str(caught.value)
    assert f"{need / 1e6:.1f} MB" in sentence and f"{(need - 1) / 1e6:.1f} MB are free" in sentence
    assert "activations" not in sentence, "no text counts yet, so shorter ones are no way out"
    assert "window_tokens" not in sentence and "weights" in sentence and "Try " in sentence and "\n" not in sentence
    monkeypatch.setattr(memory, "available", lambda device, spread=False: need)
    check_before_loading(config, tiny.root / "llama")


def test_texts_too_long_for_what_is_left_are_refused_before_step_1_and_short_ones_are_not(tiny, monkeypatch):
    run = Unlearner(tiny.config("llama", schedule={"batch_size": 60}, data={"window_tokens": 96}))
    lengths = {name: [len(w) for w in found] for name, found in run.context.windows.sets().items()}
    found = estimate_for(run.config, run.shape, torch.float32, lengths)
    need = found.total - found.weights - found.adapter
    assert found.total < estimate_for(run.config, run.shape, torch.float32).total, "these are not the longest there are"
    monkeypatch.setattr(memory, "available", lambda device, spread=False: need)
    check_step(run.config, run.shape, lengths)
    monkeypatch.setattr(memory, "available", lambda device, spread=False: need - 1)
    with pytest.raises(ConfigError, match="window_tokens|batch_size|checkpointing"):
        check_step(run.config, run.shape, lengths)
    assert engine.check_step is check_step  # a run asks it


def test_the_advice_names_only_what_would_help(tiny):
    config = tiny.config(
        "llama", model={"gradient_checkpointing": True, "dtype": "bfloat16"}, schedule={"batch_size": 1}
    )
    found = estimate_for(config, shape_for(config, tiny.root / "llama"), torch.bfloat16)
    advice = " ".join(memory.ways_out(found, config, "cpu"))
    assert not any(word in advice for word in ("gradient_checkpointing", "dtype", "batch_size", "four_bit"))
    heavy = replace(found, weights=10**12)
    assert "a smaller model" in memory.ways_out(heavy, config, "cpu")
    assert memory.ways_out(heavy, config, "cuda")[0] == "model.four_bit = true"


def test_what_is_free_is_known_here_and_a_container_s_limit_counts(tmp_path):
    free = available("cpu")
    assert free and 10**7 < free < 10**14
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 5\ninactive_file 200",
    }.items():
        (tmp_path / name).write_text(text)
    assert free_in_container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_in_container(tmp_path) is None
    assert free_in_container(tmp_path / "nowhere") is None


def test_the_bundled_run_fits_into_a_small_machine():
    config = RunConfig.from_dict({})
    shape = shape_for(config, FULL)
    estimated = estimate_for(config, shape, torch.float32)
    assert {"q_proj", "v_proj", "fc_in"} <= set(shape.modules) and shape.limit == 256
    assert estimated.total < 2e9 and shape.adapter * 4 == estimated.adapter
    assert parts(estimated, full=False).startswith("weights ") and "activations" in parts(estimated, full=False)


def test_adapters_that_stay_on_or_are_gone_on_with_are_counted_with_what_they_began_as(tiny, tmp_path):
    made = tiny.open("llama", lora={"rank": 3, "modules": "all-linear"})
    made.step()
    made.save(tmp_path, whole=False)
    for settings in ({"adapter": str(tmp_path)}, {"earlier": [str(tmp_path)]}):
        run = tiny.open("llama", model=settings)
        found = estimate_for(run.config, shape_for(run.config, tiny.root / "llama"), torch.float32)
        fixed = [p for p in run.context.model.parameters() if not p.requires_grad]
        assert found.weights == bytes_of([*fixed, *run.context.model.buffers(), *run.context.loaded.start.values()])
        assert found.adapter == bytes_of([run.context.adapter.values]) == bytes_of(run.context.loaded.start.values())


@pytest.mark.parametrize(
    "name, where, rail",
    [
        ("era", "full", {"kind": "none"}), ("gradient_routing", "lora", {"kind": "none"}),
        ("ac_dc", "lora", {"kind": "none"}), ("ssd", "full", {"kind": "none"}),
        ("grad_diff", "lora", {"optimizer_states": "separate"}),
    ],
)  # fmt: skip
def test_a_method_s_own_model_adapters_and_optimizers_are_counted(tiny, name, where, rail):
    settings = {"method": {"name": name}, "where": {"kind": where}, "guard_rail": rail}
    run = tiny.open("llama", **settings, optimizer={"learning_rate": 1e-3})
    run.step()
    found = estimate_for(run.config, shape_for(run.config, tiny.root / "llama"), torch.float32)
    state = [
        entry
        for made in run.update.optimizers().values()
        for entry in made.state.get(run.context.adapter.values, {}).values()
    ]
    assert found.optimizer == bytes_of(state)
    assert (
        found.adapter
        == bytes_of([run.context.adapter.values])
        == bytes_of(p for p in run.context.model.parameters() if p.requires_grad)
    )
