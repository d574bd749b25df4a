"""Texts that stand before a question, as many as leave room for it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearn_core.context import RunContext


def within_room(context: RunContext, pieces: Sequence[str], between: str) -> str:
    """As many of the pieces, joined, as fit into half of what the model can read: the rest is for what is asked."""
    text = ""
    for piece in pieces:
        longer = f"{text}{between}{piece}" if text else piece
        if tokens_of(context, longer) > context.loaded.limit // 2:
            break
        text = longer
    return text


def tokens_of(context: RunContext, text: str) -> int:
    """How many tokens a text has."""
    return len(context.tokenizer(text)["input_ids"])
