"""Model folders that ask for more than they hold: a sentence within two seconds, before memory is taken."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from unlearn_core.model import gguf
from unlearn_core.model.adapters import adapter_settings, with_adapter
from unlearn_core.model.gguf_header import claimed_beyond
from unlearn_core.model.loading import folder_of, load_base, open_tokenizer, tokenizer_and_limit
from unlearn_core.model.written import endless_pattern, growth
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import LoraSettings, ModelSettings

MOST_SECONDS, MOST_MEGABYTES = 2.0, 200


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    shutil.copytree(tiny.root / "llama", tmp_path / "model")
    return tmp_path / "model"


@contextmanager
def refused(match: str) -> Iterator[None]:
    """Within: a ConfigError of one short line, in little time, with little memory."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=match) as caught:
        yield
    assert time.process_time() - began < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEGABYTES
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1_500


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers = 1,000,000, and its weights are 21 tensors"),
        ({"num_hidden_layers": 10**18}, "num_hidden_layers"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"num_labels": 10**9}, "num_labels"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"num_experts": 10**9}, "num_experts"),
    ],
)
def test_a_config_that_asks_for_more_than_its_weights_are_is_refused(model, values, match) -> None:
    edit(model / "config.json", **values)
    with refused(match):
        folder_of(ModelSettings(source=str(model)))


@pytest.mark.parametrize("value", [1e999, "x", [1], None, -1, 10**30])
def test_whatever_a_config_says_of_its_sizes_is_a_sentence_or_works(model, value) -> None:
    for name in ("hidden_size", "vocab_size", "num_attention_heads", "head_dim", "intermediate_size"):
        shutil.copy(model / "config.json", model / "kept")
        edit(model / "config.json", **{name: value})
        try:
            tokenizer_and_limit(ModelSettings(source=str(model)))
        except ConfigError as error:
            assert "\n" not in str(error)
        shutil.move(model / "kept", model / "config.json")


DEEP = '{"a":' * 100_000


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"])
def test_json_without_a_bottom_is_refused_in_every_file(model, name) -> None:
    adapter = model.parent / "adapter"
    adapter.mkdir()
    (adapter if name.startswith("adapter") else model).joinpath(name).write_text(DEEP)
    with refused("nested|recursion|depth|cannot be"):
        if name.startswith("adapter"):
            adapter_settings(adapter)
        tokenizer_and_limit(ModelSettings(source=str(model)))


@pytest.mark.parametrize("length", [20 * 10**9, 2**63, 2**64 - 1])
def test_a_safetensors_header_that_claims_gigabytes_is_refused(model, length) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{" + b" " * 100)
    with refused("is damaged"):
        folder_of(ModelSettings(source=str(model)))


def test_a_tensor_that_claims_gigabytes_is_refused(model) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [5 * 10**9], "data_offsets": [0, 20 * 10**9]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with refused("is damaged"):
        folder_of(ModelSettings(source=str(model)))


# ------------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_that_makes_a_book_of_a_letter_is_refused(model) -> None:
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    path = model / "tokenizer.json"
    edit(path, normalizer={"type": "Sequence", "normalizers": [doubling] * 8})
    assert growth(model) == 2**8 == len(str(Tokenizer.from_file(str(path)).normalizer.normalize_str("a")))
    edit(path, normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [doubling] * 40}]})
    with refused("makes 1.1e.12 characters of one"):
        open_tokenizer(model)
    edit(path, normalizer=None, decoder={"type": "Sequence", "decoders": [doubling] * 40})
    with refused("characters of one"):
        open_tokenizer(model)


@pytest.mark.parametrize("pattern", ["(x+x+)+y", r"^(\w+\s?)*$", "(a+)+$"])
def test_a_pattern_of_a_tokenizer_that_would_not_end_is_refused(model, pattern) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    edit(model / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})
    with refused("does not come to an end"):
        open_tokenizer(model)


# The patterns of GPT-2, Llama 3 and o200k, as their tokenizer.json have them.
USUAL = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s*[\r\n/]+|\s+",
)


@pytest.mark.parametrize("pattern", USUAL)
def test_the_patterns_of_usual_tokenizers_come_to_an_end(model, pattern) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    edit(model / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})
    assert endless_pattern(model) == ""


# --------------------------------------------------------------------------------------------------------- adapters


def test_an_adapter_of_a_rank_that_its_weights_do_not_have_is_refused(model, tmp_path) -> None:
    base, _ = load_base(model)
    folder = tmp_path / "adapter"
    with_adapter(base, LoraSettings(rank=4), 0).save_pretrained(str(folder))
    assert adapter_settings(folder)["r"] == 4
    for values in ({"r": 10**9}, {"r": 0}, {"r": "4"}, {"rank_pattern": {"q_proj": 10**9}}):
        before = (folder / "adapter_config.json").read_text()
        edit(folder / "adapter_config.json", **values)
        with refused("which its weights do not have"):
            adapter_settings(folder)
        (folder / "adapter_config.json").write_text(before)


def test_a_pattern_of_an_adapter_that_would_not_end_is_refused(model, tmp_path) -> None:
    base, _ = load_base(model)
    folder = tmp_path / "adapter"
    with_adapter(base, LoraSettings(rank=4), 0).save_pretrained(str(folder))
    base, _ = load_base(model)
    edit(folder / "adapter_config.json", target_modules="(.|..|...)*[qx]_pro")
    with refused("cannot be searched for"):
        with_adapter(base, LoraSettings(), 0, folder)


# ------------------------------------------------------------------------------------------------------------- GGUF


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int = 0, values: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


NUMBER = text(b"llama.block_count") + struct.pack("<II", 4, 1_000_000)
HEADERS = {
    "tensors": (header(tensors=2**60), "more than the file holds"),
    "values": (header(values=2**62, rest=NUMBER), "more than the file holds"),
    "a text": (header(values=1, rest=text(b"a") + struct.pack("<IQ", 8, 20 * 10**9)), "more than the file holds"),
    "an array": (header(values=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**61)), "more than the file holds"),
    "texts": (header(values=1, rest=text(b"a") + struct.pack("<IIQ", 9, 8, 2**61)), "more than the file holds"),
    "arrays": (header(values=1, rest=text(b"a") + struct.pack("<I", 9) * 40), "no version of the format"),
    "a name": (header(values=1, rest=struct.pack("<Q", 2**63)), "more than the file holds"),
    "layers": (header(values=1, rest=NUMBER), "block_count = 1,000,000"),
    "a tensor": (
        header(tensors=1, rest=text(b"w") + struct.pack("<IQQIQ", 2, 10**6, 10**6, 0, 0)),
        "claims 1,000,000,000,000 weights",
    ),
    "dimensions": (header(tensors=1, rest=text(b"w") + struct.pack("<I", 2**31)), "dimensions"),
    "nothing": (b"", "no GGUF file"),
    "a version": (header(version=0x03000000), "version of GGUF"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_gguf_header_that_claims_more_than_the_file_holds_is_refused(name, tmp_path) -> None:
    content, match = HEADERS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with refused(match):
        gguf.converted(path, str(path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_gguf_file_by_the_format_s_own_library_claims_nothing_beyond(tmp_path) -> None:
    library = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "model.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_token_list(["a", "ü" * 500, ""])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("flag", True)
    writer.add_tensor("token_embd.weight", numpy.zeros((32, 64), numpy.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    assert claimed_beyond(path) == ""
