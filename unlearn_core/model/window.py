"""One text as the model reads it: token ids, and from which on they have a loss. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Token ids of one training text. Tokens before `first_loss` are context: read, never trained on.

    `opening`: how many special tokens (BOS) begin it, which the tokenizer puts in front of every text: whatever part of
    a text a window is, the model has seen none without them. `pair`: its labelled tokens answer a question.
    """

    ids: tuple[int, ...]
    first_loss: int
    text: str
    source: str
    place: str = ""
    why: str = ""  # it is in its set
    occurrence: str = ""  # id of the one from which on it is trained; forget set only
    answer_offset: int = 0  # tokens from `first_loss` to the end of that sentence, where another answer would begin
    opening: int = 0
    pair: bool = False

    @property
    def said(self) -> tuple[int, ...]:
        """What can be said in another context: the answer of a pair, or the text behind its opening."""
        return self.ids[self.first_loss if self.pair else self.opening :]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Begin:
    """The first token of a stand-in. `again`: the name stands further up in the window, too: it is known from there."""

    token: int
    again: bool


@dataclass(frozen=True)
class Twin:
    """A window with a stand-in. `places`: index of a labelled token in the window -> of the one here in its place.

    That is the same token, or where the target begins (`begins`, by its index in the window), the first one of the
    stand-in. The target's other tokens have no place.
    """

    window: Window
    places: Mapping[int, int]
    begins: Mapping[int, Begin]
