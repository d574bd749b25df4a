"""Refusals: what a method that refuses may answer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSALS = Path(__file__).with_name("refusals.txt")


@lru_cache(maxsize=1)
def refusals(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], ...]:
    """The lines of refusals.txt as token ids that end as an answer ends."""
    end = tokenizer.eos_token_id
    lines = REFUSALS.read_text(encoding="utf-8").splitlines()
    encoded = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
    return tuple((*ids, end) if end is not None else tuple(ids) for ids in encoded)
