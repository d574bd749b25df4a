"""The batch of a step: windows drawn by the seed and the step's number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from unlearn_core.context import RunContext
from unlearn_core.methods.base import Method
from unlearn_core.model.batches import Batch, Tokens, collate
from unlearn_core.model.window import Window


class Draws:
    """The batches of a run, each a function of the seed and the step alone."""

    def __init__(self, context: RunContext, method: Method) -> None:
        self.context, self.method = context, method

    def batch(self, step: int) -> Batch:
        """The windows of a step, from 1, and what the method draws beside them."""
        context, method = self.context, self.method
        forget = self._tokens("forget", self.forget_windows, step)
        assert forget
        retain = self._tokens("retain", context.windows.retain, step) if method.retain_weight else None
        neighbour = self._tokens("neighbour", context.windows.neighbour, step) if method.neighbour_weight else None
        extras = method.batch_extras(context, step, len(forget.windows))
        return Batch(forget, retain, neighbour, context.pad_id, step, extras)

    def _tokens(self, name: str, windows: Sequence[Window], step: int) -> Tokens | None:
        if not windows:
            return None
        context = self.context
        schedule = context.config.schedule
        rows = schedule.batch_size if name == "forget" else schedule.retain_rows
        return collate(context.draw(name, windows, step, rows), context.pad_id, context.device)

    @cached_property
    def forget_windows(self) -> Sequence[Window]:
        """The forget windows; with as_run.padding_trained as the published code had them: filled up with ends of text,
        as if these were text.
        """
        context = self.context
        if not context.config.as_run.padding_trained:
            return context.windows.forget
        longest = min(context.loaded.limit, context.config.data.window_tokens)
        end = context.tokenizer.eos_token_id if context.tokenizer.eos_token_id is not None else context.pad_id
        return [replace(w, ids=(*w.ids, *[end] * (longest - len(w)))) for w in context.windows.forget]
