"""The model as it was before step 1, without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearn_core.model.batches import Tokens, collate
from unlearn_core.model.losses import NLL, nll
from unlearn_core.model.window import Window


class Reference:
    """The model as it was before step 1, with no second copy of its weights.

    With a fresh adapter: the adapter switched off. With one that the run goes on from: the adapter with the numbers
    `start` that it had then, since the model as given is the base model together with it.
    """

    def __init__(self, model: nn.Module, start: Mapping[str, Tensor] | None = None) -> None:
        self.model, self.start = model, start
        self._known: dict[Window, Tensor] = {}

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        """Within: the model as it began, dropout off, no gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            off = self.model.disable_adapter if self.start is None else self._as_it_began
            with torch.no_grad(), off():  # type: ignore[operator]
                yield self.model
        finally:
            self.model.train(was_training)

    @contextmanager
    def _as_it_began(self) -> Iterator[None]:
        """By way of `.data`: a graph that still waits for its backward pass finds the same numbers again."""
        assert self.start is not None
        parameters = {name: p for name, p in self.model.named_parameters() if name in self.start}
        own = {name: p.data for name, p in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.start[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = own[name]

    def nll(self, tokens: Tokens) -> NLL:
        """Its NLL of the same rows; measured once per window, since it never changes.

        Each window by itself: rounding depends on the rows beside it, and a resumed run meets it beside other rows.
        """
        if unknown := [window for window in tokens.windows if window not in self._known]:
            with self() as model:
                for window in unknown:
                    self._known[window] = nll(model, collate([window], 0, tokens.ids.device)).tokens[0]
        losses = nn.utils.rnn.pad_sequence([self._known[window] for window in tokens.windows], batch_first=True)
        return NLL(losses, (tokens.labels[:, 1:] != -100).sum(1).clamp(min=1))
