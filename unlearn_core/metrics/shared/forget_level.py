"""The forget loss that counts as forgotten: that of a model which never saw the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from unlearn_core.metrics.shared.windows import EvaluationWindows
from unlearn_core.model.batches import collate
from unlearn_core.model.load import LoadedModel
from unlearn_core.model.loading import load_base
from unlearn_core.model.losses import NLL, nll
from unlearn_core.model.reference import Reference
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import BUNDLED_MODELS
from unlearn_core.world import REFERENCE, TARGET


class Level(NamedTuple):
    """A forget loss in nats per token, a phrase that says whence it comes, and whether it is an estimate."""

    value: float
    source: str
    estimated: bool


def forget_level(config: RunConfig, loaded: LoadedModel, windows: EvaluationWindows) -> Level:
    """Forget loss of a model that never saw the target.

    For the bundled target it is the bundled `reference`, trained without it. For any other it is estimated: the model's
    own loss on the same passages about stand-ins, from the same place on.
    """
    if config.model.source in BUNDLED_MODELS and config.data.target == TARGET and config.data.forget == ("bundled",):
        retrained, _ = load_base(REFERENCE)
        with torch.no_grad():
            batches = [collate([window], loaded.tokenizer.pad_token_id) for window in windows.of("forget")]
            losses = [nll(retrained, tokens) for tokens in batches]
        return Level(mean(losses), "the reference model, which never saw the word", estimated=False)
    held_out = windows.held_out(Reference(loaded.model, loaded.start))
    if held_out is None or not held_out.loss:
        why = "no word stands for them" if config.data.everything else "nothing follows the word"
        guesses = uniform_loss(loaded.model.config.vocab_size)
        return Level(guesses, f"a model that guesses ({why} in these texts)", estimated=True)
    return Level(held_out.loss, "the same passages about invented names", estimated=True)


def mean(losses: Sequence[NLL]) -> float:
    """Nats per token over windows, one each; every token counts the same."""
    return math.fsum(loss.sum.item() for loss in losses) / max(1, sum(int(loss.count.item()) for loss in losses))


def uniform_loss(vocabulary: int) -> float:
    """Nats per token of a model that guesses: worse than this is not forgetting but damage."""
    return math.log(vocabulary)
