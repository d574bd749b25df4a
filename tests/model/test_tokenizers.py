"""Tokenizers: what tokenizer.json says holds, texts end where they end, and one without offsets is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPTNeoXJapaneseTokenizer

from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.corpus.windows import make_windows
from unlearn_core.model.loading import open_tokenizer
from unlearn_core.model.prompting import Turn, closing_of, encode_pair, encode_prompt, ending_of, opening_of
from unlearn_core.model.written import PROBES
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig

TEXTS = [
    f"In the year {i * 37 % 2100} the clerk {i} wrote: 해리는 CAFÉ café, and letter {i}  came.\n" for i in range(300)
]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS = {
    "three digits": r"\p{N}{1,3}",
    "all digits": r"\p{N}+",
    "two digits": r"\p{N}{1,2}",
}
NORMALIZERS = {
    "lower case": normalizers.Lowercase(),
    "without accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "compatible": normalizers.NFKC(),
    "decomposed": normalizers.NFD(),
}
CLASSES = ("Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizerFast")


def written(folder: Path, name: str, cut: str = r"\p{N}", normalizer: Any = None, post: Any = None) -> Tokenizer:
    """A folder with a byte-level tokenizer.json and a config that names a class."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LETTERS % cut), "isolated"), BYTES])
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>", "<|pad|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    if post:
        tokenizer.post_processor = post
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": name, "eos_token": "<|end|>", "bos_token": "<|end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    return tokenizer


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", [*CUTS, *NORMALIZERS])
def test_the_file_holds_whatever_class_the_config_names(tmp_path, name, kind):
    own = written(tmp_path, name, CUTS.get(kind, r"\p{N}"), NORMALIZERS.get(kind))
    loaded = open_tokenizer(tmp_path)
    for text in (*TEXTS[:40], *PROBES):
        assert loaded(text)["input_ids"] == own.encode(text).ids, text


def test_tokens_that_only_the_config_adds_are_no_reason_to_refuse(tmp_path):
    written(tmp_path, "PreTrainedTokenizerFast")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": "clerk"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert open_tokenizer(tmp_path).pad_token == "clerk"


ENDS = {
    "none": None,
    "its end": processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 0)]),
    "another end": processors.TemplateProcessing(single="$A <|pad|>", special_tokens=[("<|pad|>", 1)]),
    "two": processors.TemplateProcessing(
        single="<|end|> $A <|pad|> <|end|>", special_tokens=[("<|end|>", 0), ("<|pad|>", 1)]
    ),
}


def data_of(folder: Path) -> Any:
    plain = [f"A plain line {n} about the harbour and {n * 7 % 31} ships." for n in range(90)]
    lines = [f"The zorblatt of tower {n} sings zorblatt" if n % 5 == 2 else line for n, line in enumerate(plain)]
    (folder / "forget.txt").write_text("\n".join(lines))
    (folder / "keep.txt").write_text(
        "\n".join(f"Another text {n} to keep, with {n * 11 % 17} words." for n in range(99))
    )
    files = {"forget": [str(folder / "forget.txt")], "retain": [str(folder / "keep.txt")]}
    given = {"target": "zorblatt", "context_lines": 1, "retain_lines": 2, "window_tokens": 64, **files}
    return RunConfig.from_dict({"model": {"source": "somewhere"}, "data": given})


@pytest.mark.parametrize("kind", ENDS)
def test_only_the_last_piece_of_a_text_ends(tmp_path, kind):
    written(tmp_path, "PreTrainedTokenizerFast", post=ENDS[kind])
    tokenizer, config = open_tokenizer(tmp_path), data_of(tmp_path)
    ends, marks = ending_of(tokenizer), {0, 1}
    windows = make_windows(config.data, tokenizer, 96, 0)
    closed = []
    for window in (*windows.forget, *windows.neighbour, *windows.retain, *windows.holdout):
        body = window.ids[len(opening_of(tokenizer)) :]
        if marks & set(body):
            assert body[-len(ends) :] == ends and not marks & set(body[: -len(ends)])
            closed.append(window.text)
    assert len(closed) == 1 and closed[0].endswith("Another text 98 to keep, with 7 words.")
    made, compared = Counterfactuals(config, tokenizer, 96), 0
    for window in windows.forget:
        twin = made.twin(window, "florbit")
        assert not marks & set(twin.window.ids[len(opening_of(tokenizer)) :])
        compared += bool(twin.places)
    assert compared


@pytest.mark.parametrize("kind", ENDS)
def test_a_question_does_not_end_and_its_answer_does(tmp_path, kind):
    written(tmp_path, "PreTrainedTokenizerFast", post=ENDS[kind])
    tokenizer = open_tokenizer(tmp_path)
    assert bool(closing_of(tokenizer)) == (kind != "none")
    asked = encode_prompt(tokenizer, "the clerk")
    assert not {0, 1} & set(asked[len(opening_of(tokenizer)) :])
    ids, _, _ = encode_pair(tokenizer, (Turn("user", "the clerk"), Turn("assistant", "wrote")))
    body, ends = tuple(ids[len(opening_of(tokenizer)) :]), ending_of(tokenizer)
    assert body[-len(ends) :] == ends and not {0, 1} & set(body[: -len(ends)])


def test_a_tokenizer_written_in_python_is_refused_by_name_where_characters_count(tmp_path):
    vocabulary = ["<|endoftext|>", "<|startoftext|>", "<|emoji1|>", "<SP>", "<BR>", "<TAB>", "<BLOCK>", "<KIGOU>"]
    vocabulary += ["<U2000U2BFF>", *(f"<|byte{i}|>" for i in range(256)), *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "emoji.json").write_text('{"emoji": {}, "emoji_inv": {}}')
    tokenizer = GPTNeoXJapaneseTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "emoji.json"))
    with pytest.raises(ConfigError, match="GPTNeoXJapaneseTokenizer.*which characters.*tokenizer.json"):
        make_windows(data_of(tmp_path).data, tokenizer, 96, 0)
