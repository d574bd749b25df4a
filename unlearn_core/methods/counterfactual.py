from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from unlearn_core.methods.base import (
    Batch,
    Facts,
    LanguageModel,
    Method,
    Objective,
    Reference,
    RunContext,
    knob,
)
from unlearn_core.settings.imports import Lazy
from unlearn_core.settings.sections import Rule

if TYPE_CHECKING:
    from unlearn_core.model import teacher
else:
    teacher = Lazy("unlearn_core.model.teacher")


@dataclass(frozen=True)
class Counterfactual(Method):
    """Counterfactual distillation: the model learns to say of the target what it said of names that it never met.

    p_t = mean over K stand-ins s of softmax(reference(x with s in the target's place))[t'], and L = mean over forget
    windows x and their labelled positions t of KL(p_t || model(x)[t]), in nats, where t' predicts the same token as t.
    Positions inside the target have no teacher; the one that predicts its first token has that of the stand-in, the
    name changed back. L is 0 where the model treats the target as it treats a stand-in, and never below.
    Liu et al. 2024 (arXiv 2407.16997), whose teacher is computed beforehand, with names from a list; here the names are
    invented in the target's shape, fresh in every step.
    """

    facts: ClassVar[Facts] = Facts(
        label="Counterfactual distillation",
        formula=r"L = \mathbb{E}_{x,t}\,\mathrm{KL}\Big(\tfrac{1}{K}\sum_k \pi_{\mathrm{ref}}(\cdot \mid x^{(k)}_{<t'})"
        r"\,\Big\Vert\,\pi_\theta(\cdot \mid x_{<t})\Big) + \alpha R_r + \nu R_n",
        passes="forget 1 F + 1 B, reference 1 F for each stand-in; retain windows 1 F + 1 B where they have weight, "
        "with kl 1 F more",
        data="forget windows in which the target stands; retain windows where they have weight",
        memory="two distributions over the vocabulary at every labelled position",
        fails="what the forget texts say around the target stays known, and is said of any name",
        settings={
            "lora": {"modules": "all-linear", "dropout": 0.0},
            "method": {"name": "counterfactual", "retain_weight": 3.0, "neighbour_weight": 1.5},
            "guard_rail": {"kind": "none"},
            "optimizer": {"learning_rate": 8e-4},
            "schedule": {
                "steps": 60,
                "batch_size": 8,
                "retain_batch_size": 4,
                "warmup": 10,
                "decay": "linear",
                "sample_every": 2,
                "evaluate_every": 2,
            },
        },
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            when=lambda run: run.data.everything,
            fields=("method.name", "data.everything"),
            because="the method puts other names in the target's place, which is then not looked for",
            fix={"data.everything": False},
            or_else="choose another method, such as npo",
        ),
        Rule(
            when=lambda run: run.as_run.padding_trained,
            fields=("method.name", "as_run.padding_trained"),
            because="the method puts other names into texts, and padding is none",
            fix={"as_run.padding_trained": False},
        ),
    )
    towards_stand_ins: ClassVar[bool] = True

    stand_ins_per_step: int = knob(4, 1, 64, "Stand-ins that a teacher distribution is averaged over (K).")
    retain_weight: float = knob(3.0, 0.0, 100.0, "Weight of the retain loss.")
    neighbour_weight: float = knob(0.0, 0.0, 100.0, "Weight of the neighbour loss.")
    retain_term: str = knob(
        "kl",
        choices=("nll", "kl"),
        help="Retain loss: NLL of the retain texts, or their KL divergence from the reference model.",
    )

    @property
    def forget_passes(self) -> int:
        """Once to be trained, and once as the teacher's distributions, which are kept beside."""
        return 2

    def batch_extras(self, context: RunContext, step: int, rows: int) -> Mapping[str, Any]:
        """The step's stand-ins, and what puts them into windows."""
        counterfactuals = context.counterfactuals
        names = counterfactuals.names(self.stand_ins_per_step, f"{context.config.seed} {step}")
        return {"counterfactuals": counterfactuals, "stand_ins": names}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        windows, extras = batch.forget.windows, batch.extras
        twins = extras["counterfactuals"].twins(windows, extras["stand_ins"])
        with reference() as before:
            teaches = teacher.teacher(replace(model, module=before), windows, twins, batch.pad_id)
        forget = teaches.distances(model, batch.forget).mean()
        return Objective(forget, self.retain_loss(model, batch, reference))


METHOD = Counterfactual
