"""Method: the contract of an unlearning method. One file of this folder, one frozen dataclass, its knobs its fields.

A file sets `METHOD` to its class; being there, it is on the start form, on the Methods page, in the command line and
in the contract tests. A hook that is not written does nothing. PyTorch is imported when a loss is first computed, since
pages list the methods without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from unlearn_core.settings.gauge import Gauge
from unlearn_core.settings.imports import Lazy
from unlearn_core.settings.knobs import knob
from unlearn_core.settings.sections import Facts, MethodSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional
    from transformers import PreTrainedModel

    from unlearn_core.context import RunContext
    from unlearn_core.model.batches import Batch
    from unlearn_core.model.losses import LanguageModel
    from unlearn_core.model.reference import Reference
else:
    torch, functional = Lazy("torch"), Lazy("torch.nn.functional")
    Tensor = PreTrainedModel = RunContext = Batch = LanguageModel = Reference = Any

__all__ = [
    "DAMPED", "Batch", "Facts", "Gauge", "LanguageModel", "Method", "Objective", "PreTrainedModel", "Reference",
    "RunContext", "Tensor", "functional", "knob", "torch",
]  # fmt: skip

State = dict[str, Tensor]

DAMPED = Gauge("damped weights", "The share of all weights that the method has damped.", "%")


class Objective(NamedTuple):
    """What a step minimises, in two parts, since a guard rail projects the gradient of the first alone.

    `values`: what else there is to record of the step, by the names of the store's points.
    """

    forget: Tensor
    retain: Tensor | None = None
    values: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Method(MethodSettings):
    """A method's knobs are its fields; `facts` is what a person who chooses it should know.

    In a step of a run: `batch_extras`, `loss` (of methods that train), the optimizer's step and the guard rail, then
    `apply_step`. Measurements and answers are taken within `inference_context`, behind `prompt_prefix`.
    """

    control: ClassVar[bool] = False  # only there to be compared with
    # Which hooks a class overrides, set by __init_subclass__.
    computes_loss: ClassVar[bool] = False
    sets_weights: ClassVar[bool] = False
    scales_gradient: ClassVar[bool] = False
    same_base_model: ClassVar[bool] = True  # with another adapter in it, the model is that of any other run

    def __init_subclass__(cls) -> None:
        def own(hook: str) -> bool:
            return getattr(cls, hook) is not getattr(Method, hook)

        cls.builds_model, cls.prepares, cls.computes_loss = own("build_model"), own("prepare"), own("loss")
        cls.sets_weights, cls.scales_gradient = own("apply_step"), own("forget_gradient_scale")
        cls.alternates = own("descent")
        answers_otherwise = own("inference_context") or own("prompt_prefix")
        cls.same_base_model = not (cls.builds_model or cls.extra_adapters or answers_otherwise)

    @property
    def retain_term(self) -> str:
        """What the retain loss is: `nll`, or `kl` (KL divergence from the reference)."""
        return "nll"

    @property
    def descent_rate(self) -> float:
        """Of a method that alternates: the learning rate of its descent, as a multiple of the other."""
        return 1.0

    def prepare(self, context: RunContext) -> State:
        """What is computed once before step 1; it is saved with every checkpoint as `context.method_state`."""
        return {}

    def batch_extras(self, context: RunContext, step: int, rows: int) -> Mapping[str, Any]:
        """Other inputs of a step's loss than windows, as `batch.extras`. `rows`: forget windows of the step."""
        return {}

    def loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Objective:
        """What a step of training minimises, in nats per token."""
        raise NotImplementedError(f"{type(self).__name__} takes no gradient steps")

    def retain_loss(self, model: LanguageModel, batch: Batch, reference: Reference) -> Tensor | None:
        """retain_weight * R(retain) + neighbour_weight * R(neighbour); None where neither has weight and windows."""
        return model.retain_loss(batch, self.retain_weight, self.neighbour_weight, self.retain_term, reference)

    def forget_gradient_scale(self, context: RunContext) -> Tensor | float:
        """The factor (P,) of the forget gradient, before it is projected."""
        return 1.0

    def descent(self, model: LanguageModel, batch: Batch, reference: Reference) -> Tensor:
        """Of a method that alternates: what its second optimizer minimises after the first one's step."""
        raise NotImplementedError(f"{type(self).__name__} does not alternate")

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        """Changes the trained parameters after the optimizer's step, or in place of one; returns the values to record.

        `end` above 0 tells that there is nothing left to do, and pauses the run.
        """
        return {}

    def inference_context(self, context: RunContext, step: int) -> AbstractContextManager[None]:
        """Within it, the model answers as the method has it at `step`, where that is more than its weights."""
        return nullcontext()

    def prompt_prefix(self, context: RunContext, step: int) -> str:
        """What stands before every question and every measured text at `step`."""
        return ""
