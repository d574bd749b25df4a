"""Codes of a quantization are never taken for weights, and no tensor of a checkpoint is passed over."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unlearn_core.model.adapters import another_base
from unlearn_core.model.loading import folder_of, load_base
from unlearn_core.model.stored_weights import mismatch
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import ModelSettings

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def model(tiny, tmp_path):
    shutil.copytree(tiny.root / "llama", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("method", ["fp8", "gptq", "compressed-tensors", "a_new_one"])
def test_a_quantization_in_the_config_is_refused_by_its_name(model, method):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(ConfigError, match=f"quantized .{method}"):
        folder_of(ModelSettings(source=str(model)))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_codes_are_refused_where_no_config_tells_of_them(model, kind):
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, Q: tensors[Q].to(kind)}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="are codes, not weights"):
        folder_of(ModelSettings(source=str(model)))


def test_a_surplus_tensor_is_refused_and_what_models_make_themselves_is_not(model):
    tensors = load_file(model / "model.safetensors")
    made = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**tensors, **made}, model / "model.safetensors", {"format": "pt"})
    load_base(model)
    save_file({**tensors, f"{Q}_scale": torch.ones(1)}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="none of this model's"):
        load_base(model)
    assert "another shape" in mismatch({"mismatched_keys": [(Q, (1,), (2,))]}) and not mismatch({})


def test_an_adapter_that_names_another_base_is_told(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/other"}))
    assert "acme/other" in another_base(tmp_path, "acme/mine", tmp_path)
    assert not another_base(tmp_path, "/models/other", tmp_path)
