"""Locating and opening a model: bundled, a folder or the hub; safetensors only, never code of its own."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, errors, snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unlearn_core.model import gguf, hub_cache, stored_weights
from unlearn_core.model.written import MOST_GROWTH, WrittenTokenizer, endless_pattern, growth
from unlearn_core.settings.errors import ConfigError, first_line, written
from unlearn_core.settings.home import cache_folder
from unlearn_core.settings.report import Report, silent
from unlearn_core.settings.sections import BUNDLED_MODELS, PACKAGED_MODELS, ModelSettings
from unlearn_core.world import FULL, REFERENCE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # the names under which transformers looks
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
)  # fmt: skip
FETCHED = ("config.json", "generation_config.json", *TOKENIZER_FILES, WEIGHTS, "model-*.safetensors", INDEX)
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack")
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
LIMITS = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "max_sequence_length",
    "seq_length", "model_max_length",
)  # fmt: skip
UNBOUNDED = 8_192  # tokens: where the architecture sets no limit, as with ALiBi, memory does


def refused(source: str, reason: str) -> ConfigError:
    """The error that names the model and what is wrong with it."""
    return ConfigError(reason.rstrip("."), field="model.source", value=source)


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Whatever a library raises about a model's files becomes a ConfigError that names the model."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of any kind: each library has kinds of its own
        raise refused(source, f"it cannot be loaded: {first_line(error)}") from error


# ------------------------------------------------------------------------------------------------- where it lies


def folder_of(settings: ModelSettings, report: Report = silent, cache: Path | None = None) -> Path:
    """The model's folder: fetched from the hub, or converted from a GGUF file, where it is not cached.

    `cache`: the folder of what was converted. Raises ConfigError where the model cannot be used.
    """
    source, path = settings.source, Path(settings.source).expanduser()
    if source in BUNDLED_MODELS or source in PACKAGED_MODELS or path.exists():
        if settings.revision:
            raise ConfigError(
                "only a model from the hub has one",
                field="model.revision",
                value=settings.revision,
                fix="Leave it empty",
            )
        if source in PACKAGED_MODELS and not path.exists():
            path = gguf.packaged(source)
        folder = dict(zip(BUNDLED_MODELS, (FULL, REFERENCE), strict=True)).get(source, path)
        folder = hub_cache.snapshot(folder)
        if folder.suffix.lower() == gguf.ENDING and folder.is_file():
            folder = gguf.converted(folder, source, cache_folder(cache), report)
    elif HUB_ID.fullmatch(source):
        report("loading the model", "from the hub, where it is not in the cache yet")
        folder = _from_hub(source, settings.revision)
    else:
        raise refused(source, "there is no folder of that name with a config.json in it")
    check_config(folder, source)
    _check_numbers(folder, source, settings.four_bit)
    return folder


def _check_numbers(folder: Path, source: str, four_bit: bool) -> None:
    """Raises ConfigError where the weights are incomplete, or quantized: their codes are no weights.

    What bitsandbytes has quantized to 4 bits is loaded with model.four_bit, as it was written.
    """
    paths, config = weight_files(folder, source), read_json(folder / "config.json", source)
    if impossible := stored_weights.beyond_its_weights(config, paths):
        raise refused(source, impossible)
    method = stored_weights.quantization(config, folder)
    if four_bit and method.startswith("bitsandbytes, 4"):
        return
    code = "" if method else stored_weights.coded(paths)
    if method or code:
        what = f"its weights are quantized ({method or code}): what stands in the file are codes, not weights"
        raise refused(source, f"{what}. Name the model that it was made of, in float32, float16 or bfloat16")


def revision_of(folder: Path) -> str:
    """The commit of a model from the hub's cache, else nothing."""
    return folder.name if folder.parent.name == "snapshots" else ""


def _from_hub(name: str, revision: str) -> Path:
    """Fetches what is needed into the hub's cache; HF_HOME, HF_TOKEN and HF_HUB_OFFLINE hold as everywhere."""
    at, fetch = f" at revision {revision!r}" if revision else "", f"hf download {name}"
    fetch += f" --revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FETCHED)))
    except errors.GatedRepoError:
        reason = "its owner gives it only to those who ask on its page at the hub: do, and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = (
            "there is no folder of that name with a config.json in it, and the hub has no such model "
            "(or it is private: set HF_TOKEN)"
        )
    except (errors.RevisionNotFoundError, errors.RevisionResolutionError):
        reason = f"the hub has it, but not{at or ' in a default revision'}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
        lacks = "only in part" if isinstance(error, errors.IncompleteSnapshotError) else "not"
        reason = (
            f"there is no folder of that name with a config.json in it, the model of that id{at} is {lacks} in the "
            f"cache {constants.HF_HUB_CACHE}, and {why}. Where there is a connection: `{fetch}`"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, ValueError) as error:
        reason = f"it cannot be fetched{at}: {first_line(error)}. To try by hand: `{fetch}`"
    raise refused(name, reason)


# ---------------------------------------------------------------------------------------------------- its files


def read_json(path: Path, source: str) -> dict[str, Any]:
    """A file of settings. Raises ConfigError where it is none."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise refused(source, f"its {path.name} cannot be read as JSON: {first_line(error)}") from None
    except RecursionError:
        raise refused(source, f"its {path.name} is nested too deeply") from None
    if not isinstance(settings, dict):
        raise refused(source, f"its {path.name} is JSON, but not a table of settings")
    return settings


def check_config(folder: Path, source: str) -> None:
    """Raises ConfigError where the folder holds no causal language model that transformers knows by itself."""
    if not folder.is_dir():
        raise refused(source, "it is a file; name the folder that it lies in")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise refused(source, "it is an adapter: name it in model.adapter, and its base model here")
        raise refused(source, "there is no folder of that name with a config.json in it")
    if (folder / "adapter_config.json").is_file():
        # transformers would silently load the base model that the adapter names, and not this one.
        raise refused(source, "an adapter lies beside its weights: move it to a folder of its own (model.adapter)")
    config = read_json(folder / "config.json", source)
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if "auto_map" in config:
            raise refused(source, "it wants to run code of its own (auto_map in config.json), which is never done here")
        if kind in CONFIG_MAPPING_NAMES:
            raise refused(source, f"its model_type is {kind!r}, which is not a causal language model")
        raise refused(source, f"its config.json says model_type {kind!r}, which this version of transformers lacks")
    if code := _foreign_code(config):
        raise refused(source, f"its config.json wants code from the hub ({code}), which is never run here")


def _foreign_code(config: Any) -> str:
    """Attention or experts of a hub's repository ("org/kernel") that a config asks for; empty where it does not."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.endswith("_implementation") and "/" in str(value):
            return f"{key} = {value}"
        if code := _foreign_code(value):
            return code
    return ""


def weight_files(folder: Path, source: str) -> list[Path]:
    """The files that hold the weights, whole as far as their headers tell. Raises ConfigError where they are not."""
    if (folder / WEIGHTS).is_file():
        names = {WEIGHTS}
    elif (folder / INDEX).is_file():
        names = {str(name) for name in dict(read_json(folder / INDEX, source).get("weight_map") or {}).values()}
    else:
        raise refused(source, _without_weights(folder, source))
    if wrong := sorted(name for name in names if Path(name).name != name):
        raise refused(source, f"its {INDEX} names {wrong[0]!r}, which is not a file of the folder")
    for name in sorted(names):
        path = folder / name
        if not path.is_file():
            raise refused(source, f"its weights are incomplete: {name} is missing")
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError, ValueError) as error:
            with path.open("rb") as raw:
                pointer = raw.read(40).startswith(b"version https://git-lfs")
            reason = "is only a pointer of Git LFS: run `git lfs pull`" if pointer else f"is damaged ({error})"
            raise refused(source, f"{name} {reason}") from None
    return [folder / name for name in sorted(names)]


def _without_weights(folder: Path, source: str) -> str:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
    if not others:
        return "it has no weights in safetensors format (model.safetensors)"
    if ggufs := [name for name in others if name.endswith(gguf.ENDING)]:
        return f"its weights are in GGUF files: name one of them, such as {folder / ggufs[0]}"
    if all(name.endswith((".h5", ".msgpack")) for name in others):
        return f"its weights ({others[0]}) are for another program; get the model in safetensors format"
    return (
        f"its weights ({others[0]}) are not in safetensors format, and files like it can run code. If you trust it: "
        f"`python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; s, to = '{folder}', "
        "'CONVERTED'; M.from_pretrained(s).save_pretrained(to); T.from_pretrained(s).save_pretrained(to)\"` "
        "and name the new folder"
    )


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of files one after another, as hexadecimal digits."""
    sha256 = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def fingerprint(folder: Path) -> str:
    """SHA-256 of the weight files in a folder; it does not depend on the number format they are loaded in."""
    return digest(weight_files(folder, str(folder)))


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 of all files that decide how a text is tokenized and a prompt is rendered."""
    return digest({path for name in TOKENIZER_FILES for path in folder.glob(name) if path.is_file()})


# ----------------------------------------------------------------------------------------------------- opening


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as its tokenizer.json says, with a padding token.

    transformers rebuilds some tokenizers by their class's name, which can lose what the file says (digit groups, the
    normalizer, the unknown token). Where the two cut a text differently, the file holds. Raises ConfigError where it
    cannot be had.
    """
    if (folder / "tokenizer.json").is_file():
        if (times := growth(folder)) > MOST_GROWTH:
            raise refused(str(folder), f"its tokenizer.json makes {times:.3g} characters of one")
        if pattern := endless_pattern(folder):
            raise refused(str(folder), f"the pattern {written(pattern)} in its tokenizer.json does not come to an end")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if (folder / "tokenizer.json").is_file():
        as_written = WrittenTokenizer(folder)
        if not tokenizer.is_fast or as_written.differs(tokenizer):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            if text := as_written.differs(tokenizer):
                reason = f"transformers cuts {text!r} into other pieces than its tokenizer.json says"
                raise refused(str(folder), f"{reason}: the file and tokenizer_config.json do not fit together")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # any will do: it is masked
    return tokenizer


def tokenizer_and_limit(
    settings: ModelSettings, report: Report = silent, cache: Path | None = None
) -> tuple[PreTrainedTokenizerBase, int]:
    """What cutting texts into windows needs of a model, without its weights. Raises ConfigError as loading does."""
    folder = folder_of(settings, report, cache)
    with named(settings.source):
        return open_tokenizer(folder), context_limit(read_config(folder))


def read_config(folder: Path) -> PreTrainedConfig:
    """A model's config, by transformers' own class for it."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return config


def context_limit(config: PreTrainedConfig) -> int:
    """Tokens that the model can read. Where its architecture sets no bound: UNBOUNDED."""
    text = config.get_text_config()
    limits = (getattr(text, name, None) for name in LIMITS)
    return next((int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < 10**9), UNBOUNDED)


def skeleton(folder: Path) -> PreTrainedModel:
    """The model on the meta device: every layer with its shape, without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(read_config(folder), trust_remote_code=False)
        return model


def load_base(
    folder: Path, dtype: torch.dtype = torch.float32, device_map: str | None = None, four_bit: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, dropout off, and its tokenizer. On the CPU unless `device_map` says where.

    Raises ValueError (or what transformers raises) where the files do not make a whole model.
    """
    tokenizer = open_tokenizer(folder)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    bits = BitsAndBytesConfig(load_in_4bit=True, **nf4) if four_bit else None
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map=device_map, use_safetensors=True, trust_remote_code=False,
        quantization_config=bits, output_loading_info=True,
    )  # fmt: skip
    model, loading = loaded
    if mismatch := stored_weights.mismatch(loading):
        raise ValueError(mismatch)
    rows = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if max(highest + 1, len(tokenizer)) > rows:
        raise ValueError(
            f"its tokenizer has {max(highest + 1, len(tokenizer)):,} pieces, and the model rows for {rows:,}; "
            "they do not belong together"
        )
    # Of the folder's generation settings only the end tokens hold: answers are greedy, without penalties.
    model.generation_config = GenerationConfig(
        eos_token_id=ends_of(model, tokenizer) or None, pad_token_id=tokenizer.pad_token_id
    )
    return model.eval(), tokenizer


def ends_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: chat models have several."""
    ends: set[int] = set()
    for tokens in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        ends |= set(tokens) if isinstance(tokens, Sequence) else set() if tokens is None else {tokens}
    return sorted(ends)


# ------------------------------------------------------------------------------------------- device and number format


def device_of(settings: ModelSettings) -> str:
    """The device that was asked for, or the best that torch sees. Raises ConfigError where it does not exist."""
    exists = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name in exists if exists[name]]  # the best first
    device = available[0] if settings.device == "auto" else settings.device
    gpus = torch.cuda.device_count() if device == "cuda" else 0

    def refusal(name: str, reason: str, fix: str = "Set it to false") -> ConfigError:
        return ConfigError(reason, field=f"model.{name}", value=getattr(settings, name), fix=fix)

    if device not in available:
        raise refusal("device", f"torch sees only {', '.join(available)} on this machine", "Set it to 'auto'")
    if settings.spread and gpus < 2:
        raise refusal("spread", f"it needs several GPUs, and this machine has {gpus}")
    if settings.four_bit and device != "cuda":
        raise refusal("four_bit", f"it needs a CUDA GPU, and the device is {device}")
    if settings.four_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise refusal("four_bit", "it needs `pip install bitsandbytes`", "Install it, or set this to false")
    return device


def dtype_of(settings: ModelSettings, device: str) -> torch.dtype:
    """The base model's number format: the one asked for, else bfloat16 where the GPU has it and float32 elsewhere."""
    has_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if settings.dtype == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    chosen: torch.dtype = getattr(torch, settings.dtype)
    return chosen
