"""EvaluationWindows: the fixed windows of every set that metrics read."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch

from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.corpus.windows import Windows
from unlearn_core.metrics.shared.stand_ins import HeldOut, held_out
from unlearn_core.model.batches import EVALUATED, Tokens, collate, spread
from unlearn_core.model.losses import LanguageModel
from unlearn_core.model.reference import Reference
from unlearn_core.model.teacher import Teacher
from unlearn_core.model.window import Window


class EvaluationWindows:
    """The fixed windows of every set, made into tensors once. `names`, `ids`: each window's set, and its id in it.

    `counterfactuals`: what puts stand-ins into them; None where nothing can stand for the target.
    """

    def __init__(
        self, windows: Windows, pad_id: int, device: torch.device, counterfactuals: Counterfactuals | None = None
    ) -> None:
        chosen = [(name, window) for name, some in windows.sets().items() for window in spread(some, EVALUATED[name])]
        self.names, self.pad_id = [name for name, _ in chosen], pad_id
        self.ids = [f"{name} {self.names[:index].count(name)}" for index, name in enumerate(self.names)]
        self.tokens = collate([window for _, window in chosen], pad_id, device)
        self.counterfactuals, self._without_prefix = counterfactuals, self.of("forget")
        self._held_out: HeldOut | None = None

    @property
    def forget(self) -> Tokens:
        """The forget windows by themselves."""
        return collate(self.of("forget"), self.pad_id, self.tokens.ids.device)

    def held_out(self, reference: Reference) -> HeldOut | None:
        """What the reference says of held-out stand-ins on the forget windows, computed once."""
        if self.counterfactuals and self._held_out is None:
            with reference() as before:
                model = LanguageModel(before)
                self._held_out = held_out(model, self.counterfactuals, self._without_prefix, self.pad_id)
        return self._held_out

    def teacher(self, reference: Reference) -> Teacher | None:
        """The distributions for the forget windows as they are now, behind a prefix or not."""
        given = self.held_out(reference)
        if given is None:
            return None
        longer = [len(now) - len(was) for now, was in zip(self.of("forget"), self._without_prefix, strict=True)]
        labels = zip(given.teacher.labels, longer, strict=True)
        return replace(given.teacher, labels=tuple(tuple(at + more for at in own) for own, more in labels))

    def behind(self, ids: tuple[int, ...], limit: int) -> EvaluationWindows:
        """The same windows behind some tokens that have no loss: those of a text, without special tokens.

        They stand behind a window's opening. What does not fit into `limit` is cut on the left.
        """

        def longer(window: Window) -> Window:
            opening, rest = window.ids[: window.opening], window.ids[window.opening :]
            before = ids[max(0, len(ids) + len(window) - limit) :]
            return replace(window, ids=(*opening, *before, *rest), first_loss=window.first_loss + len(before))

        changed = copy(self)
        changed.tokens = collate([longer(w) for w in self.tokens.windows], self.pad_id, self.tokens.ids.device)
        return changed

    def of(self, name: str) -> list[Window]:
        """The windows of one set."""
        return [w for w, belongs in zip(self.tokens.windows, self.names, strict=True) if belongs == name]
