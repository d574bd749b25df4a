"""Logits of batches, computed in groups of rows of similar length, and losses over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from unlearn_core.model.batches import Tokens


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


def together(tokens: Tokens, groups: Sequence[Tensor]) -> Tensor:
    """Values of each group, (rows, its positions), as (rows, positions) in the rows' own order."""
    positions = tokens.ids.shape[1] - 1
    order = [row for group in tokens.groups for row in group]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([nn.functional.pad(part, (0, positions - part.shape[1])) for part in groups])[back]
