"""Losses of methods against their formulas, written out token by token, on a model that is one table of logits."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearn_core.methods import METHODS
from unlearn_core.model.batches import Batch, Tokens, collate
from unlearn_core.model.losses import LanguageModel, kl_to_reference, logits_at, nll
from unlearn_core.model.window import Window

WORDS = 7
SETS = st.lists(
    st.tuples(st.lists(st.integers(0, WORDS - 1), min_size=3, max_size=8), st.integers(1, 2)), min_size=1, max_size=4
)


class Bigrams(torch.nn.Module):
    """The logits of the next token are a row of a table."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(2 * torch.randn(WORDS, WORDS, generator=generator))

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return SimpleNamespace(logits=self.table[input_ids])


class Before:
    """The reference: another table."""

    def __init__(self, seed: int) -> None:
        self.module = Bigrams(seed)

    @contextmanager
    def __call__(self):
        with torch.no_grad():
            yield self.module

    def nll(self, tokens):
        with self() as module:
            return nll(module, tokens)


def collated(windows) -> Tokens:
    return collate([Window(tuple(ids), first, "", "") for ids, first in windows], 0)


def pairs(windows) -> list[list[tuple[int, int]]]:
    """By row: (token before, labelled token)."""
    return [[(ids[i - 1], ids[i]) for i in range(first, len(ids))] for ids, first in windows]


def losses_of(table: torch.Tensor, windows) -> list[torch.Tensor]:
    return [torch.stack([-table[a].log_softmax(0)[b] for a, b in row]) for row in pairs(windows)]


def token_mean(table: torch.Tensor, windows) -> torch.Tensor:
    return torch.cat(losses_of(table, windows)).mean()


def over_tokens(windows, value) -> torch.Tensor:
    """The mean over all labelled tokens of `value(token before, label)`."""
    return torch.stack([value(a, b) for row in pairs(windows) for a, b in row]).mean()


def without(logits: torch.Tensor, label: int) -> torch.Tensor:
    others = logits.clone()
    others[label] = float("-inf")
    return others


def cross(aim: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return -(aim * logits.log_softmax(0)).sum()


def formulas(table: torch.Tensor, was: torch.Tensor, f, r) -> dict[str, tuple[dict[str, float], torch.Tensor]]:
    """By method: its settings, and its forget term by the formula of its paper."""
    mean = torch.stack([row.mean() for row in losses_of(table, f)])
    total = torch.stack([row.sum() for row in losses_of(table, f)])
    lost = total - torch.stack([row.sum() for row in losses_of(was, f)])
    tokens = torch.cat(losses_of(table, f))
    softplus = torch.nn.functional.softplus
    return {
        "npo": ({"beta": 0.3}, (2 / 0.3) * softplus(-0.3 * lost).mean()),
        "simnpo": ({"beta": 0.7, "delta": 0.4}, (2 / 0.7) * softplus(-0.7 * (mean - 0.4)).mean()),
        "wga": ({"beta": 0.5}, -((-0.5 * tokens.detach()).exp() * tokens).mean()),
        "nabla_tau": ({"alpha": 0.3, "level": 5.0}, 0.3 * (5.0 - mean.mean()).clamp(min=0) ** 2),
        "ce_u": ({}, over_tokens(f, lambda a, b: cross(without(table[a].detach(), b).softmax(0), table[a]))),
        "undial": (
            {"beta": 2.0},
            over_tokens(f, lambda a, b: cross((was[a] - 2.0 * torch.eye(WORDS)[b]).softmax(0), table[a])),
        ),
        "boundary_shrink": (
            {},
            over_tokens(f, lambda a, b: -table[a].log_softmax(0)[int(without(was[a], b).argmax())]),
        ),
        "random_mismatch": ({"mismatch_weight": 1.5, "mismatches": 2}, 1.5 * mismatch(table, f, r, 2)),
        "llmu": (
            {"forget_weight": 0.5, "random_weight": 2.0, "mismatches": 1},
            -0.5 * mean.mean() + 2.0 * mismatch(table, f, r, 1),
        ),
        "ac_dc": ({}, -mean.mean()),
    }


def mismatch(table: torch.Tensor, f, r, count: int) -> torch.Tensor:
    """After each forget context another retain text, from its first word on: the next one in the batch every turn."""
    texts, means = [ids for ids, _ in r], []
    for turn in range(count):
        answers = [texts[(row + turn) % len(texts)] for row in range(len(f))]
        rows = [(*ids[:first], *answer) for (ids, first), answer in zip(f, answers, strict=True)]
        firsts = [first for _, first in f]
        means.append(token_mean(table, list(zip(rows, firsts, strict=True))))
    return torch.stack(means).mean()


TERMS = {"llmu": "kl"}


@pytest.mark.parametrize(
    "name", formulas(torch.zeros(WORDS, WORDS), torch.zeros(WORDS, WORDS), [([1, 2], 1)], [([1], 1)])
)
@given(f=SETS, r=SETS, n=SETS, seed=st.integers(0, 99))
def test_a_loss_and_its_gradient_are_those_of_the_formula(name, f, r, n, seed):
    model, before = Bigrams(seed), Before(seed + 1)
    settings, forget = formulas(model.table, before.module.table.detach(), f, r)[name]
    method = METHODS[name](**settings, retain_weight=1.5, neighbour_weight=0.25)
    batch = Batch(collated(f), collated(r), collated(n), 0, 1, {"forget_level": 5.0})
    objective = method.loss(LanguageModel(model), batch, before)
    retain = method.descent(LanguageModel(model), batch, before) if method.alternates else objective.retain
    was, share = before.module.table.detach(), 0.7 if name == "nabla_tau" else 1.0
    expected = share * sum(
        weight * (divergence(model.table, was, texts) if TERMS.get(name) else token_mean(model.table, texts))
        for weight, texts in ((1.5, r), (0.25, n))
    )
    for ours, theirs in ((objective.forget, forget), (retain, expected)):
        gradients = [torch.autograd.grad(loss, model.table, retain_graph=True)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def divergence(table: torch.Tensor, was: torch.Tensor, texts) -> torch.Tensor:
    """KL(reference || model), mean over the labelled tokens, by torch's own."""
    return over_tokens(
        texts,
        lambda a, b: torch.nn.functional.kl_div(
            table[a].log_softmax(0), was[a].log_softmax(0), reduction="sum", log_target=True
        ),
    )


@given(f=SETS, seed=st.integers(0, 99))
def test_what_losses_are_made_of(f, seed):
    model, before = Bigrams(seed), Before(seed + 1)
    tokens, losses = collated(f), losses_of(model.table, f)
    found = nll(model, tokens)
    torch.testing.assert_close(found.sum, torch.stack([row.sum() for row in losses]))
    torch.testing.assert_close(found.mean_per_token, torch.stack([row.mean() for row in losses]))
    torch.testing.assert_close(found.token_mean, torch.cat(losses).mean())
    assert found.count.tolist() == [len(row) for row in losses]
    torch.testing.assert_close(
        kl_to_reference(model, tokens, before), divergence(model.table, before.module.table, f), rtol=1e-4, atol=1e-5
    )
    labels = [list(range(first, len(ids))) for ids, first in f]
    for row, (ids, first), logits in zip(labels, f, logits_at(model, tokens, labels), strict=True):
        assert first == row[0] and torch.equal(logits, model.table[[ids[index - 1] for index in row]])
