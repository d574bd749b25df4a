"""Logits of batches, computed in groups of rows of similar length, and losses over the whole vocabulary."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from unlearn_core.model.batches import Tokens

LARGE_VOCABULARY = 4096  # tokens


def by_group(tokens: Tokens) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids, mask, labels) of every group of rows of similar length, cut to its longest row; a label per prediction."""
    for group in tokens.groups:
        rows = list(group)
        width = max(len(tokens.windows[row]) for row in rows)
        ids, mask, labels = (part[rows, :width] for part in (tokens.ids, tokens.mask, tokens.labels))
        yield ids, mask, labels[:, 1:]


def predictions(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (rows, positions, vocabulary) of every token but the first, where the ids lie."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, :-1].to(ids.device)


def predictions_of(model: nn.Module, ids: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
    """Logits (labels, vocabulary) of the positions that are `chosen`, (rows, positions), row by row.

    The output layer is a large part of a pass where the vocabulary is: it is applied where some row has a label.
    """
    if not large_vocabulary(model):
        return predictions(model, ids, mask)[chosen]
    columns = chosen.any(0).nonzero().squeeze(1)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=columns).logits
    return logits.to(ids.device)[chosen[:, columns]]


def large_vocabulary(model: nn.Module) -> bool:
    """Whether leaving out logits pays, and the architecture can."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        return False
    return base.config.get_text_config().vocab_size >= LARGE_VOCABULARY and _can_leave_out(type(base).forward)


@cache
def _can_leave_out(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters


def together(tokens: Tokens, groups: Sequence[Tensor]) -> Tensor:
    """Values of each group, (rows, its positions), as (rows, positions) in the rows' own order."""
    positions = tokens.ids.shape[1] - 1
    order = [row for group in tokens.groups for row in group]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([nn.functional.pad(part, (0, positions - part.shape[1])) for part in groups])[back]
