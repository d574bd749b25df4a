"""Batches through a model, group by group, and losses that look at every word that it might have said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from unlearn_core.models import Reference, Tokens

# Of the labelled tokens alone: logits (tokens, vocabulary), labels (tokens,), the reference's logits -> (tokens,)
Value = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def by_group(tokens: Tokens) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids, mask, labels) of every group of rows of similar length, cut to its longest row; a label per prediction."""
    for group in tokens.groups:
        rows = list(group)
        width = max(len(tokens.windows[row]) for row in rows)
        ids, mask, labels = (part[rows, :width] for part in (tokens.ids, tokens.mask, tokens.labels))
        yield ids, mask, labels[:, 1:]


def predictions(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits (rows, positions, vocabulary) of every token but the first, where the ids lie."""
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].to(ids.device)


def together(tokens: Tokens, found: Sequence[Tensor]) -> Tensor:
    """What was found group by group, each (rows, its positions), as (rows, positions) in the rows' own order."""
    positions = tokens.ids.shape[1] - 1
    order = [row for group in tokens.groups for row in group]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat([nn.functional.pad(part, (0, positions - part.shape[1])) for part in found])[back]


def per_token(model: nn.Module, tokens: Tokens, value: Value, reference: Reference | None = None) -> Tensor:
    """`value` at every labelled token: (rows, positions), 0 without a label. With `reference`, its logits as well.

    Positions without a label are left out before `value` sees them: a public UNDIAL indexes the label -100, and public
    KL terms average over prompt and padding.
    """
    found = []
    for ids, mask, labels in by_group(tokens):
        chosen = labels != -100
        logits = predictions(model, ids, mask)[chosen].float()
        before = None
        if reference is not None:
            with reference() as was:
                before = predictions(was, ids, mask)[chosen].float()
        values = torch.zeros(chosen.shape, device=logits.device)
        found.append(values.masked_scatter(chosen, value(logits, labels[chosen], before)))
    return together(tokens, found)


def kl_to_reference(model: nn.Module, tokens: Tokens, reference: Reference) -> Tensor:
    """KL(reference || model), in nats, mean over the labelled tokens: 0 at the reference, and never below.

    The direction of TOFU and LLMU (forward): what the reference finds likely must stay likely.
    """

    def divergence(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
        assert before is not None
        now, was = logits.log_softmax(-1), before.log_softmax(-1)
        return (was.exp() * (was - now)).sum(-1)

    return per_token(model, tokens, divergence, reference).sum() / labelled(tokens)


def loss_of_sampled_labels(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
    """The NLL of one label a token, drawn from the model's own prediction."""
    drawn = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1)
    return nn.functional.cross_entropy(logits, drawn, reduction="none")


def labelled(tokens: Tokens) -> Tensor:
    """How many tokens of a batch have a label, at least 1."""
    return (tokens.labels[:, 1:] != -100).sum().clamp(min=1)
