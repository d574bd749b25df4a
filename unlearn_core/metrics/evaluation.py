"""evaluate(): the losses of a run on fixed windows, and the level that counts as forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import nn

from unlearn_core.corpus.passages import Passage
from unlearn_core.corpus.target import Target
from unlearn_core.corpus.windows import Windows, forget_windows, left_in, with_stand_in
from unlearn_core.model.batches import EVALUATED, collate, spread
from unlearn_core.model.load import LoadedModel
from unlearn_core.model.loading import load_base
from unlearn_core.model.losses import nll
from unlearn_core.model.reference import Reference
from unlearn_core.model.window import Window
from unlearn_core.settings.run_config import RunConfig
from unlearn_core.settings.sections import BUNDLED_MODELS
from unlearn_core.world import REFERENCE, TARGET


class EvaluationWindows:
    """The fixed windows of every set, made into tensors once."""

    def __init__(self, windows: Windows, pad_id: int, device: torch.device) -> None:
        chosen = [(name, window) for name, found in windows.sets().items() for window in spread(found, EVALUATED[name])]
        self.names, self.pad_id = [name for name, _ in chosen], pad_id
        self.tokens = collate([window for _, window in chosen], pad_id, device)
        self.passages = windows.texts.forget if windows.texts else ()

    def behind(self, ids: tuple[int, ...], limit: int) -> EvaluationWindows:
        """The same windows behind some tokens that have no loss. What does not fit into `limit` is cut on the left."""

        def longer(window: Window) -> Window:
            before = ids[max(0, len(ids) + len(window) - limit) :]
            return replace(window, ids=(*before, *window.ids), first_loss=window.first_loss + len(before))

        changed = copy(self)
        changed.tokens = collate([longer(w) for w in self.tokens.windows], self.pad_id, self.tokens.ids.device)
        return changed

    def of(self, name: str) -> list[Window]:
        """The windows of one set."""
        return [w for w, belongs in zip(self.tokens.windows, self.names, strict=True) if belongs == name]


@torch.no_grad()
def evaluate(model: nn.Module, windows: EvaluationWindows) -> dict[str, float]:
    """`forget_loss`, `retain_loss`, ...: nats per token of each set, dropout off. Sets that are empty are not named."""
    was_training = model.training
    model.eval()
    found = nll(model, windows.tokens)
    model.train(was_training)
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, total, count in zip(windows.names, found.sum.tolist(), found.count.tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + total
        counts[name] = counts.get(name, 0) + count
    return {f"{name}_loss": sums[name] / counts[name] for name in sums}


def forget_level(config: RunConfig, loaded: LoadedModel, windows: EvaluationWindows) -> tuple[float, str]:
    """Forget loss of a model that never saw the target, in nats per token, and a phrase that says where it comes from.

    For the bundled target it is the bundled `reference`, trained without it. For any other it is estimated: the model's
    own loss on the same passages with an unseen word in the target's place, counted from behind that word.
    """
    if config.model.source in BUNDLED_MODELS and config.data.target == TARGET and config.data.forget == ("bundled",):
        retrained, _ = load_base(REFERENCE)
        with torch.no_grad():
            batches = [collate([window], loaded.tokenizer.pad_token_id) for window in windows.of("forget")]
            found = [nll(retrained, tokens) for tokens in batches]
        return mean(found), "the reference model, which never saw the word"
    with Reference(loaded.model, loaded.start)() as model:
        stand_ins = stand_in_windows(config, loaded, windows.passages)
        if not stand_ins:
            why = "no word stands for them" if config.data.everything else "nothing follows the word"
            return uniform_loss(model.config.vocab_size), f"a model that guesses ({why} in these texts)"
        found = [nll(model, collate([w], loaded.tokenizer.pad_token_id, loaded.model.device)) for w in stand_ins]
    return mean(found), "the same passages about a word that the model never saw"


def mean(found: Sequence) -> float:
    """Nats per token over all of them, every token counting the same."""
    return math.fsum(f.sum.item() for f in found) / max(1, sum(int(f.count.item()) for f in found))


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
