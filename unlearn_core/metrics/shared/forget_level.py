"""The forget loss that counts as forgotten: that of a model which never saw the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from unlearn_core.corpus.passages import Passage
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import forget_windows, left_in, with_stand_in
from unlearn_core.metrics.shared.windows import EvaluationWindows
from unlearn_core.model.batches import collate, spread
from unlearn_core.model.load import LoadedModel
from unlearn_core.model.loading import load_base
from unlearn_core.model.losses import NLL, nll
from unlearn_core.model.reference import Reference
from unlearn_core.model.window import Window
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import BUNDLED_MODELS
from unlearn_core.world import REFERENCE, TARGET


def forget_level(config: RunConfig, loaded: LoadedModel, windows: EvaluationWindows) -> tuple[float, str]:
    """Forget loss of a model that never saw the target, in nats per token, and a phrase that says where it comes from.

    For the bundled target it is the bundled `reference`, trained without it. For any other it is estimated: the model's
    own loss on the same passages with an unseen word in the target's place, counted from behind that word.
    """
    if config.model.source in BUNDLED_MODELS and config.data.target == TARGET and config.data.forget == ("bundled",):
        retrained, _ = load_base(REFERENCE)
        with torch.no_grad():
            batches = [collate([window], loaded.tokenizer.pad_token_id) for window in windows.of("forget")]
            losses = [nll(retrained, tokens) for tokens in batches]
        return mean(losses), "the reference model, which never saw the word"
    with Reference(loaded.model, loaded.start)() as model:
        stand_ins = stand_in_windows(config, loaded, windows.passages)
        if not stand_ins:
            why = "no word stands for them" if config.data.everything else "nothing follows the word"
            return uniform_loss(model.config.vocab_size), f"a model that guesses ({why} in these texts)"
        losses = [nll(model, collate([w], loaded.tokenizer.pad_token_id, loaded.model.device)) for w in stand_ins]
    return mean(losses), "the same passages about a word that the model never saw"


def mean(losses: Sequence[NLL]) -> float:
    """Nats per token over windows, one each; every token counts the same."""
    return math.fsum(loss.sum.item() for loss in losses) / max(1, sum(int(loss.count.item()) for loss in losses))


def stand_in_windows(
    config: RunConfig, loaded: LoadedModel, passages: Sequence[Passage], count: int = 16
) -> list[Window]:
    """Forget windows in which an unseen word stands for the target; loss begins behind it (of pairs: at the answer)."""
    if config.data.everything:
        return []
    stand_in, data = "zworlblick", config.data
    changed = with_stand_in(left_in(passages, frozenset(data.excluded)), stand_in, Target(data))
    limit = min(loaded.limit, data.window_tokens)
    windows = forget_windows(changed, data, loaded.tokenizer, limit, config.model.chat_template)
    width = len(loaded.tokenizer(f" {stand_in}", add_special_tokens=False)["input_ids"])
    pairs = {passage.occurrences[0].id for passage in passages if passage.turns and passage.occurrences}
    behind = [w if w.occurrence in pairs else replace(w, first_loss=w.first_loss + width) for w in windows]
    return spread([window for window in behind if window.first_loss < len(window)], count)


def uniform_loss(vocabulary: int) -> float:
    """Nats per token of a model that guesses: worse than this is not forgetting but damage."""
    return math.log(vocabulary)
