from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn_core.corpus.stand_ins import stand_ins
from unlearn_core.methods.base import (
    Batch,
    Facts,
    LanguageModel,
    Method,
    Objective,
    Reference,
    RunContext,
    Tensor,
    functional,
    knob,
    torch,
)
from unlearn_core.settings.imports import Lazy
from unlearn_core.settings.sections import Rule

if TYPE_CHECKING:
    from unlearn_core.corpus import counterfactual, target
    from unlearn_core.model import batches
else:
    counterfactual, target = Lazy("unlearn_core.corpus.counterfactual"), Lazy("unlearn_core.corpus.target")
    batches = Lazy("unlearn_core.model.batches")


@dataclass(frozen=True)
class Counterfactual(Method):
    """Counterfactual distillation: the model learns to say of the target what it said of names that it never met.

    p_t = mean over K stand-ins s of softmax(reference(x with s in the target's place))[t'], L = mean over the labelled
    positions t of KL(p_t || model(x)[t]), in nats per token, where t' predicts the same token as t. Positions inside
    the target, and the one that predicts its first token, are left out. L is 0 where the model treats the target as it
    treats a stand-in, and never below. Liu et al. 2024 (arXiv 2407.16997), whose teacher is computed beforehand and
    whose names come from a list; here the teacher is the model before step 1, and the names are invented in the
    target's shape, fresh in every step.
    """

    facts: ClassVar[Facts] = Facts(
        label="Counterfactual distillation",
        formula=r"L = \mathbb{E}_t\,\mathrm{KL}\Big(\tfrac{1}{K}\sum_k \pi_{\mathrm{ref}}(\cdot \mid x^{(k)}_{<t'})"
        r"\,\Big\Vert\,\pi_\theta(\cdot \mid x_{<t})\Big) + \alpha R_r + \nu R_n",
        passes="forget 1 F + 1 B, reference 1 F for each stand-in; retain windows 1 F + 1 B where they have weight",
        data="forget windows in which the target stands; retain windows where they have weight",
        memory="two distributions over the vocabulary at every labelled position",
        fails="stand-ins of another shape than the target's teach another answer; what the forget texts themselves say "
        "around the target stays known",
        settings={
            "method": {"name": "counterfactual", "retain_weight": 3.0, "neighbour_weight": 1.5},
            "optimizer": {"learning_rate": 8e-4},
            "schedule": {"steps": 40, "batch_size": 8},
        },
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            when=lambda run: run.data.everything,
            fields=("method.name", "data.everything"),
            because="the method puts stand-ins in the target's place, which is then not looked for",
            fix={"data.everything": False},
        ),
        Rule(
            when=lambda run: run.data.match == "regex",
            fields=("method.name", "data.match"),
            because="the method invents names of the target's shape, and a pattern has none",
            fix={"data.match": "literal"},
        ),
    )

    stand_ins: int = knob(4, 1, 64, "Stand-ins that a teacher distribution is averaged over (K).")
    partial_names: bool = knob(True, help="Words of a name count as the target where they stand alone.")
    retain_weight: float = knob(3.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")

    def batch_extras(self, context: RunContext, step: int, rows: int) -> Mapping[str, Any]:
        """The step's stand-ins, and what puts them into windows."""
        tokenizer, config = context.tokenizer, context.config

        def tokens(name: str) -> int:
            return len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"])

        names = stand_ins(config.data.target, self.stand_ins, f"{config.seed} {step}", tokens)
        maker = counterfactual.Counterfactuals(target.Target(config.data), tokenizer, self.partial_names)
        return {"stand_ins": names, "counterfactuals": maker}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        teacher, labels = teacher_distributions(model, batch, reference)
        now = torch.cat(model.logits_at(batch.forget, labels)).log_softmax(-1)
        forget = functional.kl_div(now, torch.cat(teacher), reduction="sum") / max(1, len(now))
        return Objective(forget, self.retain_loss(model, batch, reference))


def teacher_distributions(
    model: LanguageModel, batch: Batch, reference: Reference
) -> tuple[list[Tensor], list[list[int]]]:
    """Of each forget row, the reference's distributions (labels, vocabulary), mean over the stand-ins; and the labels.

    A label, by its index in the row, counts where every stand-in has the same token in the same place.
    """
    make, windows = batch.extras["counterfactuals"], batch.forget.windows
    twins = [[make.twin(window, name) for window in windows] for name in batch.extras["stand_ins"]]
    pairs = [[dict(twin.pairs) for twin in of_name] for of_name in twins]
    labels = [sorted(set.intersection(*(set(of_name[row]) for of_name in pairs))) for row in range(len(windows))]
    with reference() as before:
        started = replace(model, module=before)
        spread = [
            started.logits_at(
                batches.collate([twin.window for twin in of_name], batch.pad_id, batch.forget.ids.device),
                [[places[label] for label in of_row] for places, of_row in zip(of_pairs, labels, strict=True)],
            )
            for of_name, of_pairs in zip(twins, pairs, strict=True)
        ]
        return [
            sum(logits.softmax(-1) for logits in of_row) / len(of_row) for of_row in zip(*spread, strict=True)
        ], labels


METHOD = Counterfactual
