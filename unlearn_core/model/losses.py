"""Losses over the labelled tokens of a batch: negative log-likelihood, KL divergence, and any other per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearn_core.model.batches import Batch, Tokens
from unlearn_core.model.logits import by_group, large_vocabulary, predictions, predictions_of, together

# Within it, the model as it was before step 1: what `Reference` is when it is called.
ReferenceModel = Callable[[], AbstractContextManager[Any]]
# Of the labelled tokens alone: logits (tokens, vocabulary), labels (tokens,), the reference's logits -> (tokens,)
Value = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def per_token(model: nn.Module, tokens: Tokens, value: Value, reference: ReferenceModel | None = None) -> Tensor:
    """`value` at every labelled token: (rows, positions), 0 without a label. With `reference`, its logits as well.

    Positions without a label are left out before `value` sees them: a public UNDIAL indexes the label -100, and public
    KL terms average over prompt and padding.
    """
    groups = []
    for ids, mask, labels in by_group(tokens):
        chosen = labels != -100
        logits = predictions_of(model, ids, mask, chosen).float()
        before = None
        if reference is not None:
            with reference() as was:
                before = predictions_of(was, ids, mask, chosen).float()
        values = torch.zeros(chosen.shape, device=logits.device)
        groups.append(values.masked_scatter(chosen, value(logits, labels[chosen], before)))
    return together(tokens, groups)


def kl_to_reference(model: nn.Module, tokens: Tokens, reference: ReferenceModel) -> Tensor:
    """KL(reference || model), in nats, mean over the labelled tokens: 0 at the reference, and never below.

    The direction of TOFU and LLMU (forward): what the reference finds likely must stay likely.
    """

    def divergence(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
        assert before is not None
        now, was = logits.log_softmax(-1), before.log_softmax(-1)
        return (was.exp() * (was - now)).sum(-1)

    return per_token(model, tokens, divergence, reference).sum() / tokens.labelled


def loss_of_sampled_labels(logits: Tensor, labels: Tensor, before: Tensor | None) -> Tensor:
    """The NLL of one label a token, drawn from the model's own prediction."""
    drawn = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1)
    return nn.functional.cross_entropy(logits, drawn, reduction="none")


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of the labelled tokens, in nats: `tokens` (rows, positions), 0 without a label."""

    tokens: Tensor
    count: Tensor  # (rows,) labelled tokens, at least 1

    @property
    def sum(self) -> Tensor:
        return self.tokens.sum(1)

    @property
    def mean_per_token(self) -> Tensor:
        return self.sum / self.count

    @property
    def token_mean(self) -> Tensor:
        """Mean over all labelled tokens of a batch: every token counts the same, however long its text."""
        return self.sum.sum() / self.count.sum()


def nll(model: nn.Module, tokens: Tokens) -> NLL:
    """The loss of every labelled token, in one forward pass per group of rows of similar length."""
    groups = []
    for ids, mask, labels in by_group(tokens):
        chosen = labels != -100
        if large_vocabulary(model):
            logits = predictions_of(model, ids, mask, chosen).float()
            losses = nn.functional.cross_entropy(logits, labels[chosen], reduction="none")
            groups.append(torch.zeros(chosen.shape, device=losses.device).masked_scatter(chosen, losses))
        else:  # without a copy of the logits, which would be the larger cost
            logits = predictions(model, ids, mask).flatten(0, 1).float()
            losses = nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="none")
            groups.append(losses.view(labels.shape))
    count = (tokens.labels[:, 1:] != -100).sum(1).clamp(min=1)
    return NLL(together(tokens, groups), count)


def logits_at(model: nn.Module, tokens: Tokens, labels: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each row, the logits (labels, vocabulary) that predict the tokens at these ascending indices, float32."""
    rows: dict[int, Tensor] = {}
    for group, (ids, mask, _) in zip(tokens.groups, by_group(tokens), strict=True):
        chosen = torch.zeros((len(group), ids.shape[1] - 1), dtype=torch.bool, device=ids.device)
        for place, row in enumerate(group):
            chosen[place, [index - 1 for index in labels[row]]] = True
        of_rows = predictions_of(model, ids, mask, chosen).float().split([len(labels[row]) for row in group])
        rows |= dict(zip(group, of_rows, strict=True))
    return [rows[row] for row in range(len(tokens.windows))]


@dataclass(frozen=True)
class LanguageModel:
    """The model that a method's loss is written on, as its formula has it: `model.nll(batch.forget)`."""

    module: nn.Module

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def nll(self, tokens: Tokens) -> NLL:
        """Negative log-likelihood of the labelled tokens, in nats."""
        return nll(self.module, tokens)

    def per_token(self, tokens: Tokens, value: Value, reference: ReferenceModel | None = None) -> Tensor:
        """`value` at every labelled token, (rows, positions); with `reference`, it is given its logits as well."""
        return per_token(self.module, tokens, value, reference)

    def logits_at(self, tokens: Tokens, labels: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of each row, the logits (labels, vocabulary) that predict the tokens at these indices."""
        return logits_at(self.module, tokens, labels)

    def retain_loss(
        self,
        batch: Batch,
        retain_weight: float,
        neighbour_weight: float,
        term: str = "nll",
        reference: ReferenceModel | None = None,
    ) -> Tensor | None:
        """The weighted retain and neighbour losses, or None where both weights are 0 (or the sets are empty).

        `term`: nll (learn the text), or kl (stay with the reference on it), both in nats per token.
        """

        def of(tokens: Tokens) -> Tensor:
            if term == "kl":
                assert reference
                return kl_to_reference(self.module, tokens, reference)
            return self.nll(tokens).token_mean

        weighted = ((retain_weight, batch.retain), (neighbour_weight, batch.neighbour))
        terms = [weight * of(tokens) for weight, tokens in weighted if weight and tokens is not None]
        return sum(terms[1:], terms[0]) if terms else None
