"""EvaluationWindows: the fixed windows of every set that metrics read."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch

from unlearn_core.corpus.windows import Windows
from unlearn_core.model.batches import EVALUATED, collate, spread
from unlearn_core.model.window import Window


class EvaluationWindows:
    """The fixed windows of every set, made into tensors once. `names`, `ids`: each window's set, and its id in it."""

    def __init__(self, windows: Windows, pad_id: int, device: torch.device) -> None:
        chosen = [(name, window) for name, some in windows.sets().items() for window in spread(some, EVALUATED[name])]
        self.names, self.pad_id = [name for name, _ in chosen], pad_id
        self.ids = [f"{name} {self.names[:index].count(name)}" for index, name in enumerate(self.names)]
        self.tokens = collate([window for _, window in chosen], pad_id, device)
        self.passages = windows.texts.forget if windows.texts else ()

    def behind(self, ids: tuple[int, ...], limit: int) -> EvaluationWindows:
        """The same windows behind some tokens that have no loss. What does not fit into `limit` is cut on the left."""

        def longer(window: Window) -> Window:
            before = ids[max(0, len(ids) + len(window) - limit) :]
            return replace(window, ids=(*before, *window.ids), first_loss=window.first_loss + len(before))

        changed = copy(self)
        changed.tokens = collate([longer(w) for w in self.tokens.windows], self.pad_id, self.tokens.ids.device)
        return changed

    def of(self, name: str) -> list[Window]:
        """The windows of one set."""
        return [w for w, belongs in zip(self.tokens.windows, self.names, strict=True) if belongs == name]
