"""GGUF files as models: converted once, the same numbers, refused by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from unlearn_core.model import gguf
from unlearn_core.model.loading import folder_of, load_base
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import PACKAGED_MODELS, ModelSettings

library = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """A query or key matrix in the order that GGUF files of Llama have: rotary pairs side by side."""
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def write(path: Path, folder: Path, architecture: str = "llama") -> None:
    """A GGUF file of the tiny Llama, in float32, by the format's own library."""
    model, tokenizer = load_base(folder)
    config, state = model.config, model.state_dict()
    writer = library.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if number in tokenizer.all_special_ids else 1 for number in range(len(pieces))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            weight = rotated(weight, heads) if heads else weight
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, tiny.root / "llama")
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_gguf_file_is_the_model_that_it_was_made_of(tiny, file, cache):
    stages: list[str] = []
    folder = folder_of(ModelSettings(source=str(file)), lambda stage, detail="": stages.append(detail), cache)
    assert folder.is_relative_to(cache)
    assert any("%" in detail for detail in stages), "its progress is reported"
    was, tokenizer = load_base(tiny.root / "llama")
    now, again = load_base(folder)
    text = "The cat sat on the mat, and then?"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert again(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(now(ids).logits, was(ids).logits, atol=1e-5)
    assert now.dtype == torch.float32


def test_it_is_converted_once_and_anew_where_the_file_has_changed(file, cache, monkeypatch):
    settings = ModelSettings(source=str(file))
    first = folder_of(settings, cache=cache)
    monkeypatch.setattr(gguf.subprocess, "Popen", lambda *args, **options: pytest.fail("converted again"))
    assert folder_of(settings, cache=cache) == first
    file.touch()
    with pytest.raises(pytest.fail.Exception, match="converted again"):
        folder_of(settings, cache=cache)


def test_a_conversion_that_is_stopped_leaves_nothing_behind(file, tmp_path):
    def report(stage: str, detail: str = "") -> None:
        if detail != file.name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder_of(ModelSettings(source=str(file)), report, tmp_path)
    assert list((tmp_path / gguf.FOLDER).iterdir()) == []


def test_what_transformers_cannot_read_is_refused_by_name(tiny, tmp_path):
    path = tmp_path / "strange.gguf"
    write(path, tiny.root / "llama", "abacus")
    with pytest.raises(ConfigError, match="abacus") as refused:
        folder_of(ModelSettings(source=str(path)), cache=tmp_path)
    assert refused.value.field == "model.source" and refused.value.value == str(path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ConfigError, match="cannot be converted"):
        folder_of(ModelSettings(source=str(tmp_path / "broken.gguf")), cache=tmp_path)
    assert [each.name for each in (tmp_path / gguf.FOLDER).iterdir()] == []


def test_a_folder_of_gguf_files_says_to_name_one_of_them(tiny, file, tmp_path):
    (tmp_path / "config.json").write_text((tiny.root / "llama" / "config.json").read_text())
    (tmp_path / "model.gguf").symlink_to(file)
    with pytest.raises(ConfigError, match=r"name one of them, such as .*model\.gguf"):
        folder_of(ModelSettings(source=str(tmp_path)))


def test_a_packaged_model_that_is_not_installed_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in PACKAGED_MODELS:
        with pytest.raises(ConfigError, match="requirements-real.txt"):
            folder_of(ModelSettings(source=name), cache=tmp_path)
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="pip install gguf"):
        folder_of(ModelSettings(source=str(tmp_path / "one.gguf")), cache=tmp_path)
