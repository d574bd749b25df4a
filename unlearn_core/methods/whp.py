from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from unlearn_core.methods.base import Facts, Method, RunContext, Tensor, knob
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.imports import Lazy

fitted_adapter = Lazy("unlearn_core.methods.shared.fitted_adapter")


# What architectures without transformers' Cache carry from token to token (RWKV, XLNet, Reformer).
STATES = ("past_key_values", "state", "mems", "past_buckets_states")


@dataclass(frozen=True)
class WHP(Method):
    """Who's Harry Potter, by logit arithmetic: tokens are suppressed that a model fitted to forget texts prefers.

    logits = base - a * relu(reinforced - base), for every token read or generated, a from 0 to `strength` over the
    steps (Eldan and Russinovich 2023, arXiv 2310.02238; read from both models as in MUSE, arXiv 2407.06460, where
    the authors train on such labels). The base is never trained. The run's adapter, also the exported one, is the
    *reinforced* one: loaded by itself it remembers more, not less; only both models together forget.
    """

    facts: ClassVar[Facts] = Facts(
        label="Who's Harry Potter (logits)",
        formula=r"v = v_{\mathrm{base}} - a\,\mathrm{ReLU}(v_{\mathrm{reinf}} - v_{\mathrm{base}}),\quad "
        r"a = \alpha\,k/n",
        passes="before step 1: forget 1 F + 1 B a step of the fit; then 2 F for every text read or generated",
        data="forget windows",
        memory="one adapter; while it answers two sets of logits and a second cache",
        fails="no weight forgets: without the second pass all is there; tokens of other texts are suppressed as well",
        settings={"guard_rail": {"kind": "none"}, "schedule": {"steps": 24, "batch_size": 16}},
        dial="amount",
        where=("lora",),
        rails=("none",),
        trains=False,
    )

    strength: float = knob(
        16.0, 0.0, 1000.0, "Strength of the correction of the logits at the last step (a); 1 as published."
    )
    fit_steps: int = knob(40, 1, 100_000, "Training steps of the fit, on schedule.batch_size forget windows each.")
    fit_rate: float = knob(2e-3, 1e-8, 1.0, "Learning rate of the fit (AdamW).")

    def prepare(self, context: RunContext) -> dict[str, Tensor]:
        return {"reinforced": fitted_adapter.reinforced(context, self.fit_steps, self.fit_rate)}

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        fitted_adapter.put(context, context.method_state["reinforced"])
        return {"dial": self._amount(context, step)}

    def inference_context(self, context: RunContext, step: int) -> AbstractContextManager[None]:
        """Within: every forward pass of the run's model, cached or not, answers with the logits of both."""
        return held_back(context, self._amount(context, step))

    def _amount(self, context: RunContext, step: int) -> float:
        return self.strength * step / context.config.schedule.steps


@contextmanager
def held_back(context: RunContext, amount: float) -> Iterator[None]:
    """Within: logits = base - amount * relu(reinforced - base), base = the reference, reinforced = the run's adapter.

    Both read the same tokens. Where the caller keeps a cache, the base gets one of its own beside it, for as long as
    the caller's lives: keys and values of the two differ, and the public code, which has no cache, shares none. Caches
    are known by their type: transformers 5.24 renamed the argument that carries them. Raises ConfigError where the
    model carries another kind of state from token to token, which would be read by both.
    """
    from copy import deepcopy
    from weakref import WeakKeyDictionary

    from transformers import Cache

    caches: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # the caller's cache -> the base's
    base_outputs: list[Any] = []  # the base's output of a pass, until the reinforced model has its own

    def base_cache(value: object) -> object:
        """The base's counterpart of a caller's cache; anything that is not a cache as it is."""
        if not isinstance(value, Cache):
            return value
        if value not in caches:
            if value.get_seq_length():
                raise RuntimeError("This cache was begun elsewhere: what the base would have in it is not known.")
            caches[value] = deepcopy(value)
        return caches[value]

    def run_base(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with context.reference():
            base_outputs[:] = [
                module.forward(*map(base_cache, args), **{name: base_cache(value) for name, value in kwargs.items()})
            ]

    def combine(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        base = base_outputs.pop()
        for name, value in output.items():
            if isinstance(value, Cache):
                caches.setdefault(value, base[name])
            elif name in STATES and value is not None:
                raise ConfigError(
                    f"method.name is 'whp', and this architecture ({module.config.model_type}) carries {name!r} from "
                    "token to token, which two models cannot share. Take another method, such as 'task_vector'."
                )
        output.logits = base.logits - amount * (output.logits - base.logits).relu()
        return output

    model = context.loaded.base_model
    hooks = [
        model.register_forward_pre_hook(run_base, with_kwargs=True),
        model.register_forward_hook(combine, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


METHOD = WHP
