"""How likely the baseline answers about the target still are, per token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unlearn_core.metrics.base import Metric, MetricFacts
from unlearn_core.settings.gauge import Gauge


class AnswerProbability(Metric):
    """exp(-NLL per token) of the answer of step 0, geometric mean over the forget questions."""

    facts = MetricFacts(
        label="baseline answer, per-token probability",
        unit="%",
        sets={
            "forget": "Probability that the model gives now to its answer of step 0: geometric mean over the tokens."
        },
        better={"forget": "lower"},
        cost="1 F over each answer",
    )

    def of_answers(self, probabilities: Sequence[float]) -> float | None:
        positive = [value for value in probabilities if value > 0]
        return math.exp(sum(map(math.log, positive)) / len(positive)) if positive else None

    def gauge(self, of: str) -> Gauge:
        return Gauge(self.facts.label, self.facts.sets[of], self.facts.unit)


METRIC = AnswerProbability()
