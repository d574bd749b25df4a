"""How far the model is, on the forget passages, from what the model as given says of stand-ins."""

from __future__ import annotations

from collections.abc import Mapping

from unlearn_core.metrics.base import Evaluation, Measurement, Metric, MetricFacts


class StandInKL(Metric):
    """Mean over the forget windows of KL(teacher || model), in nats, mean over a window's labels.

    The teacher is the mean of what the model as given predicts with each held-out stand-in in the target's place
    (model/teacher.py): 0 where the model treats the target as it treated names that it never met. No texts
    have these stand-ins and no step is trained with them. Not measured where nothing can stand for the target.
    """

    facts = MetricFacts(
        label="KL from stand-ins",
        unit="nats per token",
        sets={
            "forget": "Nats per token between the answers about the target now and those of step 0 about invented "
            "names; 0 = the target is treated as one of them."
        },
        better={"forget": "lower"},
        cost="1 F over the forget windows; before step 1 one for each of four stand-ins",
        reference=True,
    )

    def of_windows(self, evaluation: Evaluation) -> Mapping[str, Measurement]:
        windows = evaluation.windows
        teacher = windows.teacher(evaluation.reference) if evaluation.reference else None
        if teacher is None or not any(teacher.labels):
            return {}
        ids = [id for name, id in zip(windows.names, windows.ids, strict=True) if name == "forget"]
        judged = [id for id, labels in zip(ids, teacher.labels, strict=True) if labels]
        distances = teacher.distances(evaluation.model, windows.forget).tolist()
        return {"forget": Measurement(sum(distances) / len(distances), dict(zip(judged, distances, strict=True)))}


METRIC = StandInKL()
