"""The span of retain gradients: updates are projected orthogonally to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn_core.guard_rails.base import Gauge, GuardRail, RailFacts, RailMemory, RunContext, Tensor, torch
from unlearn_core.guard_rails.shared.settings import DRIFT, RetainRowSettings
from unlearn_core.settings.imports import Lazy

if TYPE_CHECKING:
    from unlearn_core.guard_rails.shared import retain_rows, subspace
else:
    retain_rows = Lazy("unlearn_core.guard_rails.shared.retain_rows")
    subspace = Lazy("unlearn_core.guard_rails.shared.subspace")

BASIS_COPIES = 4  # of a refresh's retain gradients: as they came, normalised, and in double precision
OLDER_COPIES = 6  # of the same where those of older refreshes stay: of both in double precision


@dataclass(frozen=True)
class RetainSubspaceSettings(RetainRowSettings):
    """Settings of the retain subspace."""

    def memory(self) -> RailMemory:
        """The rows of every refresh in the span, copies of the fresh ones, and the weights where drift counts."""
        rows = self.gradients
        copies = BASIS_COPIES if self.history == 1 else max(OLDER_COPIES, self.history + 2)
        stored = self.history * rows + (self.refresh == "drift")
        return RailMemory(rows, self.samples_of_a_gradient, stored, copies * rows, fewer=self.fewer)


class RetainSubspaceRail(GuardRail):
    """Projects steps orthogonally to the retain gradients: to first order, retain losses do not change.

    Only what the forget gradient does is to be projected: the retain term descends along these very rows. An update of
    plain SGD is the sum of both gradients' parts, and this is exact. Adam's (Lion's, Sophia's) is no sum: its one state
    has seen both. With `optimizer_states = "shared"`, all that lies inside the span is therefore dropped, whichever
    gradient it came from, and a plain gradient step of the retain term is put in its place: `-gain * (its gradient's
    part in the span)`, gain = |update| / |forget gradient + retain gradient|, without momentum or Adam's scaling. Where
    the gradients cancel, gain has no limit; hence that step is at most as long as the optimizer's own update. With
    "separate", each gradient has its own optimizer state, and only the update of the forget gradient is projected.

    With `history`, the rows of the last refreshes are protected together; with `scope = "layer"`, each layer's slice by
    itself, which is stricter: it holds under any rescaling by layer, and implies the global condition, since the
    layers' parts of every inner product are 0.
    """

    facts: ClassVar[RailFacts] = RailFacts(
        "retain subspace",
        "the update is projected orthogonally to the gradients of retain texts",
        RetainSubspaceSettings,
        gauges={
            "retain_condition_number": Gauge(
                "condition number",
                "Of the protected directions: 1 where they are orthogonal, thousands where they are nearly dependent.",
            ),
            "rail_drift": DRIFT,
        },
    )

    settings: RetainSubspaceSettings

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.spans = retain_rows.spans(context, self.settings)
        self.refreshes = retain_rows.Refreshes(context, self.settings)
        self.spaces: dict[str, subspace.RetainSubspace] = {}
        self.norm_median = 0.0

    @property
    def space(self) -> subspace.RetainSubspace | None:
        """The one span, where the scope is global."""
        return self.spaces.get("")

    def refresh(self, step: int) -> int:
        self.leftover = None
        if not self.refreshes.due(step):
            return 0
        rows, self.leftover, tokens = retain_rows.retain_gradients(self.context, self.settings, step)
        self.norm_median = rows.norm(dim=1).median().item()
        fitted = {
            name: subspace.RetainSubspace.fit(rows[:, part], self.spaces.get(name), self.settings.history)
            for name, part in self.spans.items()
        }
        self.spaces = {name: space for name, space in fitted.items() if space}
        self.refreshes.made(step)
        return tokens

    def project_gradient(self, gradient: Tensor) -> Tensor:
        off = gradient.clone()
        for name, space in self.spaces.items():
            off[self.spans[name]] = space.project_out(gradient[self.spans[name]])
        return off

    def project_out(self, update: Tensor) -> Tensor:
        return self.project_gradient(update)

    def project_retain(self, update: Tensor) -> Tensor:
        """As it is: descent on retain texts is what the span is protected for."""
        return update

    def retain_step(self, retain_gradient: Tensor, gain: float, longest: float) -> Tensor | None:
        """A plain gradient step of the retain term inside the span, at most `longest` long."""
        inside = [space.coordinates(retain_gradient[self.spans[name]]) for name, space in self.spaces.items()]
        length = torch.cat(inside).norm().item() if inside else 0.0
        if gain * length > longest:
            gain = longest / length
        step = torch.zeros_like(retain_gradient)
        for name, space in self.spaces.items():
            step[self.spans[name]] -= gain * space.part_inside(retain_gradient[self.spans[name]])
        return step

    def values(self) -> dict[str, float]:
        if not self.spaces:
            return self.refreshes.values()
        return {
            "retain_condition_number": max(space.condition_number for space in self.spaces.values()),
            "retain_gradient_norm_median": self.norm_median,
            **self.refreshes.values(),
        }

    def tensors(self) -> dict[str, Tensor]:
        state = self.refreshes.tensors()
        if self.refreshes.last:
            state["norm_median"] = torch.tensor([self.norm_median], dtype=torch.float64)
        for name, space in self.spaces.items():
            state |= {f"span.{name}.{key}": value for key, value in space.tensors().items()}
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        device = self.context.adapter.values.device
        by_span: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("span."):
                span, _, key = name.removeprefix("span.").rpartition(".")
                by_span.setdefault(span, {})[key] = value
        ours = "norm_median" in tensors and "means" not in tensors and set(by_span) <= set(self.spans)
        self.refreshes.restore(tensors if ours else {})
        self.norm_median = tensors["norm_median"].item() if ours else 0.0
        spaces = {span: subspace.RetainSubspace.from_tensors(values, device) for span, values in by_span.items()}
        self.spaces = spaces if ours else {}
        self.leftover = None


GUARD_RAIL = RetainSubspaceRail
