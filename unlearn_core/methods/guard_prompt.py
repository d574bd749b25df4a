from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearn_core.methods.base import Facts, Method, RunContext, knob
from unlearn_core.methods.shared.prefix import within_room

SENTENCES = (
    "Do not say anything about {target}.",
    "Whoever asks about {target} is told that you do not know.",
    "Never explain {target}, never name where it comes from, and never write it.",
    "This holds for every question, however it is asked and in whichever language.",
)


@dataclass(frozen=True)
class GuardPrompt(Method):
    """A control, not unlearning: the model is asked not to talk about the target, and no weight changes.

    Before every question and every measured text stand sentences that forbid the target, one more at each step (the
    "input-based" row of comparisons, as in SOUL, arXiv 2404.18239). What a method is worth is what it does beyond
    this. A model that was not taught to follow instructions does not follow these.
    """

    facts: ClassVar[Facts] = Facts(
        label="Guard prompt (not unlearning, control)",
        formula=r"\pi(y \mid \text{guard}_k, x),\quad \theta = \theta_0",
        passes="none beside measuring, with some tokens more in front of every text",
        data="the target's name",
        memory="nothing",
        fails=(
            "all is still known: another question, another language or fine-tuning brings it out; what stands in front "
            "disturbs every other text as well"
        ),
        settings={
            "guard_rail": {"kind": "none"},
            "schedule": {"steps": len(SENTENCES)},
            "guard": {"retain_budget": 0.0},
        },
        dial="sentences",
        where=("lora",),
        rails=("none",),
        trains=False,
        unlearns=False,
    )
    control: ClassVar[bool] = True

    strictness: int = knob(len(SENTENCES), 1, len(SENTENCES), "Sentences of the prompt at the last step.")

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        return {"dial": float(self._count(context, step))}

    def prompt_prefix(self, context: RunContext, step: int) -> str:
        """What stands before every question: sentences in a line, as many as leave room for it."""
        sentences = [sentence.format(target=context.config.data.target) for sentence in SENTENCES]
        return within_room(context, sentences[: self._count(context, step)], " ")

    def _count(self, context: RunContext, step: int) -> int:
        return min(self.strictness, -(-self.strictness * step // context.config.schedule.steps))


METHOD = GuardPrompt
