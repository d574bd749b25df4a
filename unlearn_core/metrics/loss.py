"""The loss: mean negative log-likelihood of the labelled tokens, in nats per token."""

from __future__ import annotations

from collections.abc import Mapping

from unlearn_core.metrics.base import Evaluation, Measurement, Metric, MetricFacts


class Loss(Metric):
    """-log p(token | what stands before it), mean over the labelled tokens of a set; per window over its own."""

    facts = MetricFacts(
        label="loss",
        unit="nats per token",
        sets={
            "forget": "Nats per token on the passages to forget; it rises as they are forgotten.",
            "retain": "Nats per token on retain texts, which training also sees.",
            "neighbour": "Nats per token on texts about the same things without the target.",
            "holdout": "Nats per token on texts like the retain texts, never trained on; the budget limits it.",
        },
        better={"forget": "higher", "retain": "equal", "neighbour": "equal", "holdout": "equal"},
    )

    def of_windows(self, evaluation: Evaluation) -> Mapping[str, Measurement]:
        return evaluation.token_means(evaluation.nll.tokens)


METRIC = Loss()
