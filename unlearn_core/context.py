"""RunContext: settings, model, texts and random draws of a run, for methods, guard rails, masks and metrics.

Methods, guard rails, masks and metrics take this value; none of them knows the engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unlearn_core.settings.report import Report, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from unlearn_core.corpus.counterfactual import Counterfactuals
    from unlearn_core.corpus.windows import Windows
    from unlearn_core.model.adapters import AdapterVector
    from unlearn_core.model.load import LoadedModel
    from unlearn_core.model.reference import Reference
    from unlearn_core.settings.run_config import RunConfig


@dataclass
class RunContext:
    """A run's settings, model, texts and random draws. P: trained parameters, in one vector (`adapter`).

    `method_state` is what the method prepared before step 1, `mask` (P,) is True where numbers may change (None:
    everywhere), `forget_level` the forget loss of a model that never saw the target, in nats per token: all three are
    set when the baseline is measured or a checkpoint is restored.
    """

    config: RunConfig
    loaded: LoadedModel
    adapter: AdapterVector
    reference: Reference
    read_windows: Callable[[], Windows]
    report: Report = silent
    method_state: dict[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    forget_level: float = 0.0

    @cached_property
    def windows(self) -> Windows:
        """The run's texts, read when they are first wanted: only to answer a question, they never are."""
        return self.read_windows()

    @cached_property
    def counterfactuals(self) -> Counterfactuals:
        """Invents stand-ins for the target and puts them into windows."""
        from unlearn_core.corpus.counterfactual import Counterfactuals

        texts = (window.text for windows in self.windows.sets().values() for window in windows)
        return Counterfactuals(self.config, self.tokenizer, self.loaded.limit, texts)

    @property
    def model(self) -> Any:
        """A PeftModel, or the bare model where its own weights are trained."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def device(self) -> torch.device:
        device: torch.device = self.loaded.model.device
        return device

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def draw(self, name: str, items: Sequence[Any], step: int, count: int) -> list[Any]:
        """`count` items for a step, from 1: the set is gone through in a fresh order each time round.

        What is drawn follows from the seed, `name` and `step` alone, so that a resumed run draws the same.
        """
        drawn = []
        orders: dict[int, list[int]] = {}
        for position in range((step - 1) * count, step * count):
            lap, place = divmod(position, len(items))
            if lap not in orders:
                orders[lap] = list(range(len(items)))
                random.Random(f"{self.config.seed} {name} {lap}").shuffle(orders[lap])
            drawn.append(items[orders[lap][place]])
        return drawn
