"""Gradient routing and ERA: what is blocked learns nothing of the forget text, and what is taken away is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.quick import some_quick
from unlearn_core.methods import METHODS
from unlearn_core.methods.era import NEW, OLD, widened
from unlearn_core.metrics.shared.forget_level import forget_level
from unlearn_core.model.batches import collate
from unlearn_core.model.loading import fingerprint, load_base
from unlearn_core.model.losses import nll
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.training.engine import Unlearner
from unlearn_core.world import REFERENCE, TARGET

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

PLAIN = {"name": "sgd", "learning_rate": 0.3, "max_gradient_norm": 0.0}
BY_STEP = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.01, "max_gradient_norm": 1.0}


def settings(method: str, optimizer: dict | None = None, **knobs) -> dict:
    """Of a short run: four steps that learn, some that make coherent."""
    return {
        "method": {"name": method, "learn_steps": 4, **({"expand": 8} if method == "era" else {}), **knobs},
        "where": {"kind": "full" if method == "era" else "lora"},
        "guard_rail": {"kind": "none"},
        "lora": {"dropout": 0.0},
        "optimizer": optimizer or BY_STEP,
        "schedule": {"batch_size": 3},
    }


def values_of(record) -> dict[str, float]:
    return {name: value for name, value in record.values.items() if name != "step_seconds"}


def numbers(run, ending: str) -> torch.Tensor:
    """Those of one adapter, in the order of its parts."""
    parts = run.context.adapter.parts().items()
    return torch.cat(
        [run.context.adapter.values.detach()[part] for name, part in parts if name.endswith(f".{ending}.weight")]
    )


def after(run, steps: int):
    for _ in range(steps):
        run.step()
    return run


# ------------------------------------------------------------------------------------------------- what is blocked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "blocked"),
    [("gradient_routing", {"forget_to_default": 0.0}), ("era", {"forget_to_old": 0.0, "forget_elsewhere": 0.0})],
)
def test_blocked_numbers_receive_exactly_the_retain_gradient_and_the_others_both(tiny, method, blocked):
    run = after(tiny.open(**settings(method, PLAIN, **blocked)), 2)
    objective = run.config.method.loss(run.update.model, run.draws.batch(3), run.context.reference)
    forget, keep = run.context.adapter.gradient_of(objective.forget), run.context.adapter.gradient_of(objective.retain)
    factors = run.method.forget_gradient_scale(run.context)
    before = run.context.adapter.values.detach().clone()
    run.step()
    moved = before - run.context.adapter.values.detach()
    routed, rate = factors == 1, PLAIN["learning_rate"]
    assert set(factors.unique().tolist()) == {0.0, 1.0} and forget[~routed].norm() > 0.01 * keep.norm()
    assert torch.equal(before[~routed].sub(keep[~routed], alpha=rate), run.context.adapter.values.detach()[~routed])
    torch.testing.assert_close(moved[routed], rate * (forget + keep)[routed], rtol=1e-3, atol=1e-6)
    assert forget[routed].norm() > 0


@pytest.mark.slow
def test_a_factor_below_one_scales_the_forget_gradient(tiny):
    factors = {}
    for knob in (-0.75, 0.5):
        run = tiny.open(**settings("gradient_routing", forget_to_default=knob))
        factors[knob] = run.method.forget_gradient_scale(run.context)
        assert (factors[knob] == knob).sum() == (factors[knob] == 1).sum() == len(factors[knob]) // 2
    run = tiny.open(**settings("era", forget_to_old=-0.75, forget_elsewhere=0.25))
    found, places = run.method.forget_gradient_scale(run.context), run.context.method_state["places"]
    assert torch.equal(found == 1, places == NEW) and torch.equal(found == -0.75, places == OLD)
    assert found[places == 0].unique().tolist() == [0.25]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [PLAIN, {**BY_STEP, "max_gradient_norm": 0.0}])
def test_the_default_adapter_is_that_of_a_run_in_which_the_forget_text_never_existed(tiny, optimizer):
    """To the bit, before the ablation and after it: the twin is another method, with one adapter."""
    routed = tiny.open(**settings("gradient_routing", optimizer, retain_trains="default"))
    alone = settings("retain_only", optimizer)
    del alone["method"]["learn_steps"]
    twin = tiny.open(**alone)
    for _ in range(7):
        routed.step(), twin.step()
        assert torch.equal(numbers(routed, "default"), twin.context.adapter.values.detach())
    other = after(tiny.open(**settings("gradient_routing", optimizer, retain_trains="both")), 3)
    assert not torch.equal(numbers(other, "default"), numbers(after(tiny.open(**alone), 3), "default"))


@pytest.mark.slow
def test_text_to_keep_that_goes_through_the_old_dimensions_alone_learns_nothing_of_the_new(tiny):
    """To the bit: however much the forget text weighs, all but the new dimensions are the same."""
    routed = {"forget_to_old": 0.0, "forget_elsewhere": 0.0, "old_alone": 1.0}
    made = [
        after(tiny.open(**settings("era", {**BY_STEP, "max_gradient_norm": 0.0}, forget_weight=weight, **routed)), 3)
        for weight in (0.01, 3.0)
    ]
    (one, other), new = (
        (run.context.adapter.values.detach() for run in made),
        made[0].context.method_state["places"] == NEW,
    )
    assert torch.equal(one[~new], other[~new]) and not torch.equal(one[new], other[new])


def test_activations_that_are_routed_are_what_they_were_and_lead_no_gradient_back_through_what_is_blocked(tiny):
    routed, plain = (tiny.open(**settings("era", route_at=at, forget_to_old=0.0)) for at in ("activations", "numbers"))
    losses = [
        run.config.method.loss(run.update.model, run.draws.batch(1), run.context.reference).forget
        for run in (routed, plain)
    ]
    torch.testing.assert_close(*losses)
    assert torch.equal(
        routed.method.forget_gradient_scale(routed.context), torch.ones_like(routed.context.adapter.gradient)
    )
    gradient = routed.context.adapter.gradient_of(losses[0])
    for name, part in routed.context.adapter.parts().items():
        inner, places = gradient[part], routed.context.method_state["places"][part]
        if "fc_in" in name:  # what makes the activations
            assert not inner[places == OLD].any() and inner[places == NEW].any()
        elif "fc_out.weight" in name:  # what reads them
            assert inner[places == OLD].any()


# ------------------------------------------------------------------------------------------------- what is taken away


def exported(run, folder: Path):
    """The default adapter alone, as anyone would load it."""
    run.save(folder, whole=False)
    base = AutoModelForCausalLM.from_pretrained(run.config.model.source, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder).eval()


def logits(model, run) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([run.context.windows.forget[0].ids])).logits


@pytest.mark.slow
@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
@pytest.mark.parametrize("negate", [0.0, 2.0])
def test_after_the_ablation_the_model_is_the_default_adapter_alone(tiny, tmp_path, model, negate):
    run = after(tiny.open(model, **settings("gradient_routing", negate=negate)), 3)
    assert not torch.allclose(
        logits(exported(run, tmp_path / "learned"), run), logits(run.context.model, run), atol=1e-3
    )
    for step in range(4, 8):
        record = run.step()
        assert record.values["forget_adapter"] == -negate and record.values["update_norm"] > 0
        alone = exported(run, tmp_path / str(step))
        assert list(alone.peft_config) == ["default"]
        assert torch.equal(logits(alone, run), logits(run.context.model, run))


@pytest.mark.slow
def test_the_negated_adapter_is_the_learned_one_times_minus_its_strength(tiny):
    learned = after(tiny.open(**settings("gradient_routing", PLAIN, negate=2.0)), 3)
    assert not numbers(learned, "lora_B.default").any(), "it waits"
    turned = after(tiny.open(**settings("gradient_routing", PLAIN, negate=2.0, learn_steps=3)), 3)
    layers = [module for module in turned.context.model.modules() if hasattr(module, "get_delta_weight")]
    before = [module for module in learned.context.model.modules() if hasattr(module, "get_delta_weight")]
    assert layers and len(layers) == len(before)
    for now, then in zip(layers, before, strict=True):
        assert then.get_delta_weight("forget").norm() > 0 and not now.get_delta_weight("forget").any()
        torch.testing.assert_close(now.get_delta_weight("default"), -2.0 * then.get_delta_weight("forget"))


def test_nothing_of_the_forget_text_is_looked_at_after_the_ablation(tiny):
    run = after(tiny.open(**settings("gradient_routing")), 4)
    objective = run.config.method.loss(run.update.model, replace(run.draws.batch(5), forget=None), None)
    found = run.context.adapter.gradient_of(objective.retain)
    assert (
        objective.forget.item() == 0
        and not found[run.method.forget_gradient_scale(run.context) == 1].any()
        and found.any()
    )


def cut_out(run, width: int):
    """The run's model without its new dimensions."""
    narrow = AutoModelForCausalLM.from_config(widened(run.context.model.config, -width), dtype=torch.float32)
    wide = dict(run.context.model.named_parameters())
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            parameter.copy_(wide[name][tuple(slice(size) for size in parameter.shape)])
    return narrow


@pytest.mark.slow
@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
def test_after_the_ablation_the_enlarged_model_is_one_without_the_new_dimensions(tiny, tmp_path, model):
    run = after(tiny.open(model, **settings("era")), 3)
    assert not torch.allclose(logits(cut_out(run, 8), run), logits(run.context.model, run), atol=1e-3)
    for step in range(4, 8):
        record = run.step()
        assert record.values["new_dimensions"] == 0 and record.values["update_norm"] > 0
        assert not run.context.adapter.values.detach()[run.context.method_state["places"] == NEW].any()
        torch.testing.assert_close(logits(cut_out(run, 8), run), logits(run.context.model, run), rtol=1e-4, atol=1e-5)
        run.save(tmp_path / str(step), whole=False)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(step), dtype=torch.float32)
        assert torch.equal(logits(again, run), logits(run.context.model, run))


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
def test_the_new_dimensions_are_all_that_the_wider_model_has_more(tiny, model):
    run = tiny.open(model, **settings("era"))
    narrow = sum(p.numel() for p in cut_out(run, 8).parameters())
    places = run.context.method_state["places"]
    assert int((places == NEW).sum()) == sum(p.numel() for p in run.context.model.parameters()) - narrow > 0
    base, _ = load_base(tiny.root / model)
    assert narrow == sum(p.numel() for p in base.parameters())


# ------------------------------------------------------------------------------------------------- does it do anything


def learned_and_ablated(tiny, method: str, **knobs) -> tuple[float, float, float]:
    """Forget loss on all forget windows: when it has learned, right after the ablation, and when it is coherent."""
    lora = {"modules": "all-linear", "dropout": 0.0}
    more = {"optimizer": {**BY_STEP, "weight_decay": 0.0, "learning_rate": 2e-2}, "lora": lora}
    more |= {"schedule": {"batch_size": 3, "evaluate_every": 100}}  # what is looked at is measured here
    run = tiny.open(**{**settings(method, learn_steps=40, **knobs), **more})
    tokens, found = collate(run.context.windows.forget, run.context.pad_id), []
    for steps in (39, 1, 10):
        after(run, steps)
        with torch.no_grad():
            losses = nll(run.context.model, tokens)
        found.append(float(losses.sum.sum() / losses.count.sum()))
    return found[0], found[1], found[2]


@pytest.mark.slow
def test_what_was_routed_goes_with_its_adapter_and_what_was_not_stays(tiny):
    learned, ablated, coherent = learned_and_ablated(tiny, "gradient_routing")
    control = learned_and_ablated(tiny, "gradient_routing", forget_to_default=1.0)
    assert ablated > learned + 1.5 and coherent > learned + 1
    assert control[1] < ablated - 1 and control[2] < coherent - 0.4


@pytest.mark.slow
def test_what_was_routed_goes_with_the_new_dimensions_and_what_was_not_stays(tiny):
    learned, ablated, coherent = learned_and_ablated(tiny, "era")
    control = learned_and_ablated(tiny, "era", forget_to_old=1.0, forget_elsewhere=1.0)
    assert ablated > learned + 2 and coherent > learned + 2
    assert abs(control[1] - control[0]) < 0.5 and control[2] < coherent - 2


# ------------------------------------------------------------------------------------------------- state out and in


@pytest.mark.slow
@pytest.mark.parametrize(("method", "negate"), [("gradient_routing", 0.0), ("gradient_routing", 1.5), ("era", 0.0)])
def test_a_resumed_run_is_the_uninterrupted_one_across_the_ablation(tiny, tmp_path, method, negate):
    given = settings(method, **({"negate": negate} if negate else {}))
    whole, left = tiny.open(**given), tiny.open(**given)
    expected = [values_of(whole.step()) for _ in range(7)]
    for number in range(1, 6):
        left.step()
        left.save(tmp_path / str(number), whole=True)
    for at in (3, 4, 5):  # before it, right after it, a step later
        resumed = Unlearner(tiny.config(**given))
        resumed.restore(tmp_path / str(at))
        assert [values_of(resumed.step()) for _ in range(7 - at)] == expected[at:]
        assert torch.equal(resumed.context.adapter.values, whole.context.adapter.values)


def test_an_earlier_step_still_answers_as_it_did(tiny, tmp_path):
    run = after(tiny.open(**settings("gradient_routing")), 3)
    said = run.answers(["What is zorblatt?"])[0]
    run.save(tmp_path / "step-000003", whole=False)
    own = after(run, 3).context.adapter.values.detach().clone()
    again = run.answers_at(tmp_path / "step-000003", ["What is zorblatt?"])[0]
    assert (again.response.text, again.target_probability) == (said.response.text, said.target_probability)
    assert torch.equal(run.context.adapter.values, own)
    (tmp_path / "step-000003" / "forget" / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="step-000003 cannot be read"):
        run.answers_at(tmp_path / "step-000003", ["What is zorblatt?"])


# ------------------------------------------------------------------------------------------------- how it begins


def test_era_begins_with_weights_that_follow_from_the_seed(tiny):
    first, again, other = (tiny.open(**settings("era"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.context.adapter.values, again.context.adapter.values)
    assert not torch.equal(first.context.adapter.values, other.context.adapter.values)
    base, _ = load_base(tiny.root / "gptj")
    tokens = collate(first.context.windows.forget, first.context.pad_id)
    with torch.no_grad():
        assert nll(first.context.model, tokens).sum.sum() != nll(base, tokens).sum.sum()
    assert first.context.model.config.n_inner == 4 * base.config.n_embd + 8


def test_a_base_that_era_cannot_widen_is_refused(tiny, monkeypatch):
    from transformers import BloomConfig, BloomForCausalLM, Phi3Config, Phi3ForCausalLM

    method = METHODS["era"]()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    phi = Phi3ForCausalLM(Phi3Config(vocab_size=50, intermediate_size=32, **small))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    for model, words in ((phi, "several matrices"), (bloom, "no width")):
        with pytest.raises(ConfigError, match=words):
            method.build_model(model, 0)
    monkeypatch.setattr("unlearn_core.methods.era.LARGEST", 10)
    with pytest.raises(ConfigError, match="trained from its first step"):
        method.build_model(load_base(tiny.root / "gptj")[0], 0)


@pytest.mark.slow
def test_routing_begins_with_the_bundled_model_that_never_saw_its_word():
    config = RunConfig.from_dict({"method": {"name": "gradient_routing"}})
    assert config.model.source == "bundled-reference" and TARGET in config.prompts[0].text
    run = Unlearner(config)
    assert run.context.loaded.fingerprint == fingerprint(REFERENCE)
    found = run.measure_baseline().values["forget_loss"]
    assert found == pytest.approx(forget_level(config, run.context.loaded, run.evaluation)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": {"source": "bundled"}}, "has learned the word already"),
        ({"model": {"gradient_checkpointing": True}, "method": {"retain_trains": "default"}}, "computed again"),
        ({"where": {"mask": "saliency"}}, "the method itself decides"),
        ({"where": {"kind": "full"}}, "needs an adapter"),
        ({"guard_rail": {"kind": "retain_subspace"}}, "the change of the method itself"),
        ({"method": {"name": "era"}, "where": {"kind": "lora"}}, "not an adapter beside one"),
        ({"method": {"name": "era"}, "where": {"kind": "full", "mask": "saliency"}}, "the method itself decides"),
    ],
)
def test_what_does_not_go_with_them_is_refused_with_the_reason(given, words):
    method = {"name": "gradient_routing", **given.get("method", {})}
    with pytest.raises(ConfigError, match=words):
        RunConfig.from_dict({**given, "method": method})
    assert RunConfig.from_dict({"method": {"name": method["name"]}})


def test_the_bundled_model_that_knows_the_word_is_what_the_negated_form_is_for():
    given = {"method": {"name": "gradient_routing", "negate": 3.0}, "model": {"source": "bundled"}}
    assert RunConfig.from_dict(given).method.negate == 3
    with pytest.raises(ConfigError, match="takes the place"):
        RunConfig.from_dict({**given, "model": {"source": "bundled", "adapter": "somewhere"}})


def test_a_run_with_a_base_of_its_own_does_not_answer_for_the_one_that_was_named(tiny):
    usual, routed, own = (tiny.open(**given) for given in ({}, settings("gradient_routing"), settings("era")))
    assert usual.same_base_model("") and routed.same_base_model("") and not own.same_base_model("")
    assert (
        usual.same_base_model("npo")
        and not usual.same_base_model("era")
        and not usual.same_base_model("gradient_routing")
    )
    assert not routed.same_base_model("npo") and not own.same_base_model("npo")
