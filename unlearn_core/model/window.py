"""One text as the model reads it: token ids, and from which on they have a loss. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Token ids of one training text. Tokens before `first_loss` are context: read, never trained on."""

    ids: tuple[int, ...]
    first_loss: int
    text: str
    source: str
    place: str = ""
    why: str = ""  # it is in its set
    occurrence: str = ""  # id of the one from which on it is trained; forget set only
    answer_offset: int = 0  # tokens from `first_loss` to the end of that sentence, where another answer would begin

    def __len__(self) -> int:
        return len(self.ids)
