"""What a checkpoint's tensors are: refused where they are codes of a quantization, or not those of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

SETTINGS = ("quantization_config", "compression_config")  # of config.json
BESIDE = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")  # as other programs write them
NUMBERS = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types that weights are trained in
CODES = re.compile(r"weight|qzeros|packed|_blocks$|scales?$|absmax|SCB$")  # in the last part of a tensor's name
# Tensors that older checkpoints hold and models make by themselves: rotary frequencies, causal masks, positions.
MADE = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(masked_)?bias|position_ids|cached_(cos|sin))$")
TOWERS = re.compile(r"(^|[._])(vision|visual|image|audio|multi_modal)")  # that no text goes through


def quantization(config: Mapping[str, Any], folder: Path) -> str:
    """How a checkpoint says that its weights are quantized ("fp8", "gptq, 4 bits"); empty where it does not.

    `config`: its config.json.
    """
    for within in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in SETTINGS:
            if (settings := within.get(name)) and (method := _method(settings)):
                return method
    return next((f"as its {name} says" for name in BESIDE if (folder / name).is_file()), "")


def _method(settings: Any) -> str:
    if not isinstance(settings, Mapping):
        return "in an unknown way"
    flags = [settings[name] for name in ("load_in_4bit", "load_in_8bit") if name in settings]
    if flags and not any(flags):
        return ""  # written by a program that could have quantized it
    method = str(settings.get("quant_method") or settings.get("quant_algo") or settings.get("format") or "")
    bits = settings.get("bits") or settings.get("w_bit") or (4 if settings.get("load_in_4bit") else None)
    bits = bits or (8 if settings.get("load_in_8bit") else None)
    return ", ".join(part for part in (method or "in an unknown way", f"{bits} bits" if bits else "") if part)


def coded(paths: Iterable[Path]) -> str:
    """The first tensor whose numbers are codes, with its type ("F8_E4M3", "I8"); empty where there is none."""
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind = str(file.get_slice(name).get_dtype())
                if kind not in NUMBERS and CODES.search(name.rpartition(".")[2]):
                    return f"{name} is of type {kind}"
    return ""


def mismatch(loading: Mapping[str, Any]) -> str:
    """Why the tensors of a checkpoint are not those of the model, by transformers' loading info; empty if they are.

    Weights that share another's (tied ones) count as there. Towers for pictures and sound, which are not loaded, and
    tensors that models make by themselves are no mismatch.
    """
    missing = sorted(loading.get("missing_keys", ()))
    if missing:
        return f"{len(missing)} of its tensors are not in the file, such as {missing[0]}"
    shapes = sorted(str(each[0] if isinstance(each, tuple) else each) for each in loading.get("mismatched_keys", ()))
    if shapes:
        return f"{len(shapes)} of its tensors have another shape in the file, such as {shapes[0]}"
    surplus = [
        name for name in sorted(loading.get("unexpected_keys", ())) if not (MADE.search(name) or TOWERS.search(name))
    ]
    if surplus:
        return f"{len(surplus)} tensors in the file are none of this model's, such as {surplus[0]}"
    return ""


# Numbers of a config.json that decide how many parts a model is built of, before its weights are looked at.
LAYERS = re.compile(r"(num|n)(_hidden|_decoder|_encoder)?_layers?|(en|de)coder_layers")
EXPERTS = re.compile(r"(num|n)(_local|_routed|_shared)?_experts")
MOST_LABELS, MOST_EXPERTS = 100_000, 4_096
LONGEST_TEXT = 1 << 26  # positions, for each of which some architectures keep a row


def beyond_its_weights(config: Mapping[str, Any], paths: Iterable[Path]) -> str:
    """Which count of a config.json its weights cannot have, so that building the model would take all memory.

    Every layer has a tensor of its own at least; an expert is a row of its router. Empty where all can be.
    """
    tensors = sum(_tensors(path) for path in paths)
    for name, count in _counts(config):
        most = tensors if LAYERS.fullmatch(name) else max(tensors, MOST_EXPERTS) if EXPERTS.fullmatch(name) else None
        if most is not None and count > most:
            return f"its config.json says {name} = {count:,}, and its weights are {tensors:,} tensors"
        if name == "num_labels" and count > MOST_LABELS:
            return f"its config.json says {name} = {count:,}, which no language model has"
        if name in ("n_positions", "max_position_embeddings") and count > LONGEST_TEXT:
            return f"its config.json says {name} = {count:,}, which no model reads"
    return ""


def _tensors(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return len(file.keys())


def _counts(config: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    """Every whole number of a config, with its name; those of its parts (text_config, vision_config), too."""
    for name, value in config.items():
        if isinstance(value, int):
            yield name, value
        elif isinstance(value, float) and value == float("inf"):
            yield name, 2**63
        elif isinstance(value, Mapping):
            yield from _counts(value)
