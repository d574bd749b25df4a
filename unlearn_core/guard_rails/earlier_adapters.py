"""The inputs that adapters of earlier requests read: a new adapter reads none of them (O-LoRA)."""

from __future__ import annotations

from typing import ClassVar

from unlearn_core.guard_rails.base import GuardRailSettings, RailFacts, RailMemory, RunContext, Tensor
from unlearn_core.guard_rails.null_space import PROTECTED, NullSpaceRail, inputs


class EarlierAdaptersRail(NullSpaceRail):
    """Keeps a new adapter from the inputs that the adapters in `model.earlier` read (arXiv 2310.14152)."""

    facts: ClassVar[RailFacts] = RailFacts(
        "earlier adapters (O-LoRA)",
        "the adapter is zero on what the adapters of earlier requests read",
        gauges=PROTECTED,
    )

    @classmethod
    def memory(cls, settings: GuardRailSettings) -> RailMemory:
        return RailMemory()

    def fit(self) -> dict[str, Tensor]:
        bases: dict[str, Tensor] = inputs.earlier_inputs(self.context)
        return bases

    @staticmethod
    def energy_of(context: RunContext) -> float:
        return 0.0

    def nothing_left(self, layer: str, width: int) -> str:
        return (
            f"model.earlier has adapters that together read all {width} inputs of {layer}: nothing is left for a new "
            "one. Set guard_rail.kind to another, or name fewer."
        )


GUARD_RAIL = EarlierAdaptersRail
