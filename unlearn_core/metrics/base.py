"""Metric: the contract of what is measured of a model. One file of this folder each, named after its metric.

A file sets `METRIC` to an instance; being there, it is measured at the baseline and every `schedule.evaluate_every`
steps, stored as `<set>_<name>`, and shown by gauges, terminal and bench. PyTorch is imported when it is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unlearn_core.settings.gauge import Gauge
from unlearn_core.settings.imports import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unlearn_core.metrics.shared.windows import EvaluationWindows
    from unlearn_core.model.losses import NLL, LanguageModel, Value
    from unlearn_core.model.reference import Reference
else:
    torch = Lazy("torch")
    Tensor = EvaluationWindows = NLL = LanguageModel = Reference = Value = Any

__all__ = ["Evaluation", "Measurement", "Metric", "MetricFacts", "Tensor", "torch"]

Better = Literal["higher", "lower", "equal"]


@dataclass(frozen=True)
class Measurement:
    """A metric on one set: the aggregate, and by the example's id (a window or a question) its own value."""

    value: float
    examples: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What metrics read: the model as it stands, the windows, and the loss of every labelled token."""

    model: LanguageModel
    windows: EvaluationWindows
    reference: Reference | None = None

    @cached_property
    def nll(self) -> NLL:
        """The loss of every token, computed once."""
        return self.model.nll(self.windows.tokens)

    def per_token(self, value: Value) -> Tensor:
        """`value` of (logits, labels, logits of the reference) at every labelled token, (windows, positions)."""
        return self.model.per_token(self.windows.tokens, value, self.reference)

    def token_means(self, values: Tensor) -> dict[str, Measurement]:
        """The mean of values (windows, positions) over the labelled tokens: of each set, and of each window."""
        totals, counts = values.sum(1).tolist(), self.nll.count.tolist()
        rows = list(zip(self.windows.names, self.windows.ids, totals, counts, strict=True))
        measured: dict[str, Measurement] = {}
        for name in dict.fromkeys(self.windows.names):
            of_set = [(id, total, count) for belongs, id, total, count in rows if belongs == name]
            mean = sum(total for _, total, _ in of_set) / sum(count for _, _, count in of_set)
            measured[name] = Measurement(mean, {id: total / count for id, total, count in of_set})
        return measured


@dataclass(frozen=True)
class MetricFacts:
    """What a reader of the number should know.

    `sets`: set of windows (or role of questions) -> what the metric tells on it, a sentence. `better`: by set, where it
    should move while the target is forgotten. `cost`: beside the forward pass (F) that metrics share. `reference`: it
    compares with the model as it was before step 1.
    """

    label: str
    unit: str
    sets: Mapping[str, str]
    better: Mapping[str, Better]
    cost: str = "nothing"
    reference: bool = False


class Metric:
    """A hook for each kind of material; one that is not written measures nothing."""

    facts: ClassVar[MetricFacts]

    @property
    def name(self) -> str:
        """The name of the metric's file, as in the names of its points."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def of_windows(self, evaluation: Evaluation) -> Mapping[str, Measurement]:
        """By the set's name, of the evaluation windows; sets without windows are not named."""
        return {}

    def of_answers(self, probabilities: Sequence[float]) -> float | None:
        """Of the answers to questions: `probabilities`, a question's each, as stored with it. None without any."""
        return None

    def point(self, of: str) -> str:
        """The name of its points in the store: `forget_loss`."""
        return f"{of}_{self.name}"

    def gauge(self, of: str) -> Gauge:
        """What a page says of it on one set."""
        return Gauge(f"{of} {self.facts.label}", self.facts.sets[of], self.facts.unit)
