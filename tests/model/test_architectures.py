"""The commonest architectures, tiny and random: an adapter finds its layers on each, and every one of them moves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.quick import some_quick
from unlearn_core.model.adapters import AdapterVector, kind, with_adapter
from unlearn_core.model.batches import collate
from unlearn_core.model.load import checkpoint_gradients, load_model
from unlearn_core.model.loading import context_limit, load_base
from unlearn_core.model.losses import nll
from unlearn_core.model.sampling import answer
from unlearn_core.model.window import Window
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import LoraSettings
from unlearn_core.training.engine import Unlearner

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
SIZE = {**HEADS, "hidden_size": 32, "intermediate_size": 64}
GROUPED = {**SIZE, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QUERY_AND_VALUE = ["q_proj", "v_proj"]

# model_type -> what its config needs to be tiny, and the layers that hold queries and values
ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gpt2": (GPT, ["c_attn"]),
    "gptj": ({**GPT, "rotary_dim": 4}, QUERY_AND_VALUE),
    "gpt_neox": (SIZE, ["query_key_value"]),
    "opt": ({**HEADS, "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32}, QUERY_AND_VALUE),
    "llama": (GROUPED, QUERY_AND_VALUE),
    "mistral": ({**GROUPED, "sliding_window": 8}, QUERY_AND_VALUE),
    "mixtral": ({**GROUPED, **EXPERTS}, QUERY_AND_VALUE),
    "qwen2": ({**GROUPED, "tie_word_embeddings": True}, QUERY_AND_VALUE),
    "qwen3": ({**GROUPED, "head_dim": 8}, QUERY_AND_VALUE),
    "gemma": ({**GROUPED, "head_dim": 8}, QUERY_AND_VALUE),
    "gemma2": ({**GROUPED, "head_dim": 8, "sliding_window": 8}, QUERY_AND_VALUE),
    "gemma3_text": ({**GROUPED, "head_dim": 8, "sliding_window": 8}, QUERY_AND_VALUE),
    "phi": (SIZE, QUERY_AND_VALUE),
    "phi3": (GROUPED, ["qkv_proj"]),
    "falcon": ({**HEADS, "hidden_size": 32}, ["query_key_value"]),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, ["query_key_value"]),
}
NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout",
              "classifier_dropout", "layerdrop", "activation_dropout")  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tiny, tmp_path_factory) -> Path:
    """A folder per architecture, with the tiny world's tokenizer."""
    root = tmp_path_factory.mktemp("zoo")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.root / "llama")
    for name, (size, _) in ARCHITECTURES.items():
        torch.manual_seed(3)
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **size, **ends)
        for setting in NO_DROPOUT:
            if hasattr(config, setting):
                setattr(config, setting, 0.0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # random models are near-uniform: larger weights make losses and answers differ
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def settings(tiny, zoo: Path, name: str, **sections: Any) -> RunConfig:
    model = {"source": str(zoo / name), **sections.pop("model", {})}
    few = {"steps": 2, "batch_size": 2, "answer_tokens": 4}
    return tiny.config(model=model, schedule=few, lora={"dropout": 0.0}, **sections)


@pytest.mark.parametrize("name", some_quick(ARCHITECTURES, 2))
def test_every_adapted_layer_moves_and_the_base_stays_as_it_is_to_the_bit(tiny, zoo, name):
    run = Unlearner(settings(tiny, zoo, name))
    assert list(run.context.loaded.modules) == ARCHITECTURES[name][1] == run.provenance()["lora_modules"]
    adapted = [module for module in run.context.model.modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == len(run.context.adapter.layers) == 2 * len(ARCHITECTURES[name][1])
    frozen = {n: p.detach().clone() for n, p in run.context.model.named_parameters() if not p.requires_grad}
    before = run.context.adapter.values.detach().clone()
    run.measure_baseline()
    assert run.step().applied
    assert run.context.adapter.untouched(run.context.adapter.values.detach() - before) == []
    assert all(torch.equal(p, frozen[n]) for n, p in run.context.model.named_parameters() if not p.requires_grad)
    assert (
        0
        < run.context.adapter.values.numel()
        == sum(p.numel() for p in run.context.model.parameters() if p.requires_grad)
    )


@pytest.mark.parametrize("name", some_quick(ARCHITECTURES, 2))
def test_computing_activations_again_gives_the_same_gradient(tiny, zoo, name):
    gradients = []
    for again in (False, True):
        base, tokenizer = load_base(zoo / name)
        if again:
            checkpoint_gradients(base, name)
        model = with_adapter(base, LoraSettings(rank=4, dropout=0.1), 0).train()
        vector = AdapterVector(model)
        with torch.no_grad():
            vector.values.add_(0.02)  # with B at zero, half of the gradient would be
        ids = tuple(tokenizer("The cat sees the old lamp and the river on day 7.")["input_ids"])
        tokens = collate([Window(ids, 1, "", ""), Window(ids[:7], 2, "", "")], 0)
        torch.manual_seed(1)
        gradients.append(vector.gradient_of(nll(model, tokens).token_mean))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", some_quick(ARCHITECTURES, 2))
def test_questions_of_unlike_length_are_answered_together_as_one_by_one(zoo, name):
    model, tokenizer = load_base(zoo / name)
    prompts = ["The cat", "What is zorblatt, and who keeps the old clock in the garden?", "a", "In the forest"]
    together = answer(model, tokenizer, prompts, 6, limit=context_limit(model.config))
    alone = [answer(model, tokenizer, [prompt], 6, limit=context_limit(model.config))[0] for prompt in prompts]
    assert [response.ids for response in together] == [response.ids for response in alone]
    assert len({response.ids for response in together}) > 1


@pytest.mark.parametrize("name", some_quick(["gpt2", "mixtral", "qwen2", "phi"]))
def test_all_linear_layers_are_adapted_where_that_is_asked_for_but_never_the_output(zoo, name):
    base, _ = load_base(zoo / name)
    inner = {n for n, m in base.named_modules() if type(m).__name__ in ("Linear", "Conv1D")} - {"lm_head"}
    model = with_adapter(base, LoraSettings(rank=2, modules="all-linear"), 0)
    assert set(AdapterVector(model).layers) == inner and len({kind(n) for n in inner}) > 2


def test_an_output_layer_that_shares_the_embedding_is_refused_and_one_of_its_own_is_not(zoo):
    with pytest.raises(ConfigError, match="lora.modules is 'lm_head': the output layer .* shares"):
        with_adapter(load_base(zoo / "qwen2")[0], LoraSettings(modules="lm_head"), 0)
    assert AdapterVector(with_adapter(load_base(zoo / "llama")[0], LoraSettings(modules="lm_head"), 0)).layers == [
        "lm_head"
    ]


def test_layers_of_a_model_that_names_them_in_its_own_way_are_listed(zoo):
    base, _ = load_base(zoo / "llama")
    for layer in base.model.layers:
        layer.self_attn.strange, layer.self_attn.stranger = layer.self_attn.q_proj, layer.self_attn.v_proj
        del layer.self_attn.q_proj, layer.self_attn.v_proj
    with pytest.raises(ConfigError, match="lora.modules is 'auto': .*strange, stranger"):
        with_adapter(base, LoraSettings(), 0)


def test_a_base_in_bfloat16_has_an_adapter_in_float32_and_the_same_fingerprint(tiny, zoo):
    run = Unlearner(settings(tiny, zoo, "llama", model={"dtype": "bfloat16"}))
    run.measure_baseline()
    assert run.context.model.dtype == torch.bfloat16 and run.provenance()["model_dtype"] == "bfloat16"
    trained = [p for p in run.context.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32} == {run.context.adapter.values.dtype}
    assert run.step().applied and run.context.adapter.untouched(run.context.adapter.values.detach()) == []
    offset = 0
    for p in trained:  # the model computes with the vector itself, not with a copy
        assert p.data_ptr() == run.context.adapter.values.data_ptr() + 4 * offset
        offset += p.numel()
    config = settings(tiny, zoo, "llama")
    assert run.context.loaded.fingerprint == load_model(config.model, config.lora, 0).fingerprint


@pytest.mark.slow
def test_layers_on_another_device_follow_the_vector(tiny, zoo, tmp_path, monkeypatch):
    """Here every B is only said to lie elsewhere: the numbers must be those of a single device."""

    def numbers(folder: Path) -> list:
        run = Unlearner(settings(tiny, zoo, "llama"))
        run.measure_baseline()
        found = []
        for number in range(3):
            run.save(folder / str(number), whole=True)
            found.append(run.step().values["objective"])
        found += [a.target_probability for a in run.answers_at(folder / "1", ["The cat"]) + run.answers(["The cat"])]
        run.restore(folder / "2")
        return [
            *found,
            run.step().values["objective"],
            run.context.adapter.values.tolist(),
            run.context.adapter.apart != [],
        ]

    plain = numbers(tmp_path / "plain")
    monkeypatch.setattr(AdapterVector, "lies_apart", lambda self, parameter: parameter.shape[1] == 4)
    spread = numbers(tmp_path / "spread")
    assert plain[:-1] == spread[:-1] and (plain[-1], spread[-1]) == (False, True)


def test_the_check_after_step_1_names_the_layers_that_no_gradient_reaches(tiny, zoo, monkeypatch):
    run = Unlearner(settings(tiny, zoo, "llama"))
    run.measure_baseline()
    attention = run.context.model.get_base_model().model.layers[1].self_attn
    monkeypatch.setattr(attention, "forward", torch.no_grad()(attention.forward))
    with pytest.raises(
        ConfigError, match=r"did not move 2 of 4 adapted layers, such as model.layers.1.self_attn.q_proj"
    ):
        run.step()


def test_limits_are_read_whatever_the_architecture_calls_them(zoo):
    for name in ARCHITECTURES:
        found = context_limit(AutoConfig.from_pretrained(zoo / name))
        assert found == (8_192 if name == "bloom" else 96), name  # BLOOM has no bound: its positions are ALiBi


def test_a_model_that_is_no_causal_one_is_refused(zoo, tiny, tmp_path):
    shutil.copytree(zoo / "llama", tmp_path / "t5")
    text = (tmp_path / "t5" / "config.json").read_text()
    (tmp_path / "t5" / "config.json").write_text(text.replace('"llama"', '"t5"'))
    with pytest.raises(ConfigError, match="model_type is 't5', which is not a causal language model"):
        Unlearner(tiny.config(model={"source": str(tmp_path / "t5")}))
