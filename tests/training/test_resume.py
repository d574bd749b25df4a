"""State out and in: a run that was left and taken up again is the run that never stopped, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.quick import some_quick
from unlearn_core.settings.errors import ConfigError
from unlearn_core.training.engine import Unlearner

pytestmark = pytest.mark.usefixtures("one_thread")

RUNS = {
    "ascent, adamw, rail in the middle of its period": {},
    "npo with retain loss": {"method": {"name": "npo", "beta": 0.5}, "schedule": {"batch_size": 3}},
    "npo, rows per sample": {"method": {"name": "npo"}, "guard_rail": {"rows": "sample", "every": 4}},
    "sgd with momentum": {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.5}},
    "no rail": {"guard_rail": {"kind": "none"}},
    "published order, linear decay": {
        "guard_rail": {"apply_to": "gradient"},
        "schedule": {"decay": "linear", "warmup": 3},
    },
}


def values_of(record) -> dict[str, float]:
    return {name: value for name, value in record.values.items() if name != "step_seconds"}


def restored(tiny, folder: Path, **settings) -> Unlearner:
    """As another process would do it: opened from the config, never measured, restored."""
    run = Unlearner(tiny.config(**settings))
    run.restore(folder)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", some_quick(RUNS, 2))
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny, tmp_path, name):
    whole = tiny.open(**RUNS[name])
    expected = [values_of(whole.step()) for _ in range(8)]
    left = tiny.open(**RUNS[name])
    left.save(tmp_path / "0", whole=True)
    for _ in range(5):
        left.step()
    left.save(tmp_path / "5", whole=True)
    for at in (0, 5):
        taken_up = restored(tiny, tmp_path / str(at), **RUNS[name])
        assert taken_up.step_number == at and (
            at == 0 or torch.equal(taken_up.context.adapter.values, left.context.adapter.values)
        )
        assert [values_of(taken_up.step()) for _ in range(8 - at)] == expected[at:]
        assert torch.equal(taken_up.context.adapter.values, whole.context.adapter.values)
        assert taken_up.baseline == whole.baseline and taken_up.levels() == whole.levels()


@pytest.mark.slow
def test_saving_twice_gives_the_same_state_and_changes_nothing(tiny, tmp_path):
    run, untouched = tiny.open(), tiny.open()
    for _ in range(3):
        run.step(), untouched.step()
    run.save(tmp_path / "a", whole=True)
    run.save(tmp_path / "b", whole=True)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"adapter_model.safetensors", "adapter_config.json", "state.json", "state.safetensors"} <= set(names)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert values_of(run.step()) == values_of(untouched.step())


def test_no_pickle_is_written_and_an_adapter_alone_has_no_state(tiny, tmp_path):
    run = tiny.open()
    run.save(tmp_path / "adapter", whole=False)
    run.save(tmp_path / "whole", whole=True)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".safetensors", ".json", ".md"}
    assert not (tmp_path / "adapter" / "state.json").exists()
    assert json.loads((tmp_path / "whole" / "state.json").read_text())["step"] == 0


@pytest.mark.slow
def test_going_back_in_the_same_process_is_the_same_as_in_a_new_one(tiny, tmp_path):
    """Also back to a state that has no moments and no subspace yet."""
    for settings in ({}, {"optimizer": {"name": "sgd", "momentum": 0.9}}):
        run = tiny.open(**settings)
        run.save(tmp_path / "start", whole=True)
        first = [values_of(run.step()) for _ in range(4)]
        run.restore(tmp_path / "start")
        assert run.step_number == 0 and run.update.rail.space is None
        assert [values_of(run.step()) for _ in range(4)] == first


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
def test_a_saved_adapter_is_plain_peft(tiny, tmp_path, model):
    run = tiny.open(model)
    for _ in range(3):
        run.step()
    run.save(tmp_path / "adapter", whole=False)
    base = AutoModelForCausalLM.from_pretrained(tiny.root / model, dtype=torch.float32)
    elsewhere = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([run.context.windows.forget[0].ids])
    run.context.model.eval()
    with torch.no_grad():
        here = run.context.model(input_ids=ids).logits
        assert torch.equal(here, elsewhere(input_ids=ids).logits)
        with elsewhere.disable_adapter():
            assert not torch.equal(elsewhere(input_ids=ids).logits, here)


@pytest.mark.slow
def test_asking_an_earlier_adapter_gives_its_answers_and_leaves_the_run_s_own_to_the_bit(tiny, tmp_path):
    run, untouched = tiny.open(), tiny.open()
    prompts = ["What is zorblatt?", "The cat"]
    said = {}
    for step in range(4):
        said[step] = [(a.response.text, a.target_probability) for a in run.answers(prompts)]
        run.save(tmp_path / str(step), whole=False)
        run.step(), untouched.step()
    own = run.context.adapter.values.detach().clone()
    for step in (2, 0, 3, 1):
        found = run.answers_at(tmp_path / str(step), prompts)
        assert [(a.response.text, a.target_probability) for a in found] == said[step]
        assert torch.equal(run.context.adapter.values, own)
    assert values_of(run.step()) == values_of(untouched.step())


def test_a_broken_or_missing_adapter_leaves_the_run_s_own_as_it_is(tiny, tmp_path):
    run = tiny.open()
    run.step()
    run.save(tmp_path / "good", whole=False)
    own = run.context.adapter.values.detach().clone()
    with pytest.raises(ConfigError, match="step-000007 is not there"):
        run.answers_at(tmp_path / "step-000007", ["The cat"])
    cut = tmp_path / "good" / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="good cannot be read"):
        run.answers_at(tmp_path / "good", ["The cat"])
    assert torch.equal(run.context.adapter.values, own)


@pytest.mark.slow
def test_a_state_that_is_incomplete_or_of_another_model_is_refused_with_a_sentence(tiny, tmp_path):
    run = tiny.open()
    run.step()
    files = ("state.json", "state.safetensors", "adapter_model.safetensors")
    for name in files:
        for damage in ("gone", "cut"):
            folder = tmp_path / f"{name}-{damage}"
            run.save(folder, whole=True)
            if damage == "gone":
                (folder / name).unlink()
            else:
                (folder / name).write_bytes((folder / name).read_bytes()[:-20])
            with pytest.raises(ConfigError, match=f"{folder.name} cannot be read"):
                Unlearner(tiny.config()).restore(folder)
    run.save(tmp_path / "gptj-state", whole=True)
    with pytest.raises(ConfigError, match="gptj-state"):
        Unlearner(tiny.config("llama")).restore(tmp_path / "gptj-state")
    facts = json.loads((tmp_path / "gptj-state" / "state.json").read_text())
    (tmp_path / "gptj-state" / "state.json").write_text(json.dumps({**facts, "model_fingerprint": "0" * 64}))
    with pytest.raises(ConfigError, match="other weights"):
        Unlearner(tiny.config()).restore(tmp_path / "gptj-state")


def test_what_a_guard_has_said_is_remembered(tiny, tmp_path):
    run = tiny.open(guard={"retain_budget": 0.0, "collapse": False}, method={"ceiling": 0.0})
    record = run.step()
    record.values["forget_loss"] = run.guard.forget_level + 1
    assert run.judge(record.values).rule == "forgotten_enough" and run.judge(record.values) is None
    run.save(tmp_path / "state", whole=True)
    again = restored(tiny, tmp_path / "state", guard={"retain_budget": 0.0, "collapse": False})
    assert again.judge(record.values) is None


@pytest.mark.slow
def test_answers_and_measurements_between_steps_do_not_change_the_run(tiny, tmp_path):
    quiet, asked = tiny.open(lora={"dropout": 0.3}), tiny.open(lora={"dropout": 0.3})
    for number in range(5):
        asked.answers([f"Question {number}?", "The cat"])
        asked.baseline_answers(["Again?"])
        asked.measure_baseline() if number == 0 else asked.save(tmp_path / str(number), whole=number % 2 == 0)
        torch.rand(number)
        assert values_of(asked.step()) == values_of(quiet.step())
    assert torch.equal(asked.context.adapter.values, quiet.context.adapter.values)


# -------------------------------------------------------------------------------------------------- answers


PROMPTS = ["The cat", "What is zorblatt?", "a", "The river sees the old lamp and the clock.", "Zorblatt", "🎩 שלום"]


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
def test_questions_asked_together_are_answered_as_one_by_one(tiny, model):
    run = tiny.open(model)
    run.step()
    together, alone = run.answers(PROMPTS), [run.answers([prompt])[0] for prompt in PROMPTS]
    assert [a.response.text for a in together] == [a.response.text for a in alone]
    assert [a.response.tokens for a in together] == [a.response.tokens for a in alone]
    assert [a.target_probability for a in together] == pytest.approx([a.target_probability for a in alone], rel=1e-4)
    assert len({a.response.text for a in together}) > 1 and run.answers([]) == []


@pytest.mark.parametrize("model", some_quick(["gptj", "llama"]))
def test_the_probability_is_that_of_the_answer_which_was_really_given_before_step_1(tiny, model):
    run = tiny.open(model)
    run.step()
    prompt = "The cat"
    ids = run.context.tokenizer(prompt)["input_ids"]
    with run.context.reference() as quiet:
        made = quiet.generate(input_ids=torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
    given = [token for token in made[len(ids) :].tolist() if token != run.context.tokenizer.eos_token_id]
    run.context.model.eval()
    with torch.no_grad():
        logits = run.context.model(input_ids=torch.tensor([[*ids, *given]])).logits[0, len(ids) - 1 : -1]
    likely = logits.log_softmax(-1).gather(1, torch.tensor(given)[:, None]).mean().exp().item()
    assert run.answers([prompt])[0].target_probability == pytest.approx(likely, rel=1e-3)


@pytest.mark.slow
def test_a_question_may_be_as_long_as_the_model_reads_and_one_longer_is_refused(tiny):
    run = tiny.open()
    ids = run.context.tokenizer("The cat sees the old lamp and " * 30)["input_ids"]
    limit = run.context.loaded.limit
    exact = {}
    for length in range(limit - 9, limit + 3):
        text = run.context.tokenizer.decode(ids[:length])
        exact.setdefault(len(run.context.tokenizer(text)["input_ids"]), text)
    assert {limit - 7, limit - 1, limit} <= set(exact)
    alone = run.answers(["The cat"])[0].response.text
    for length, text in exact.items():
        if length < limit:
            long, short = run.answers([text, "The cat"])
            assert long.response.tokens <= min(6, limit - length) and short.response.text == alone
        else:
            with pytest.raises(ConfigError, match=f"{length} tokens; this model reads {limit}"):
                run.answers([text])
    with pytest.raises(ConfigError, match="50,000 characters"):
        run.answers(["a" * 50_000])
    with pytest.raises(ConfigError, match="empty"):
        run.answers(["  "])
