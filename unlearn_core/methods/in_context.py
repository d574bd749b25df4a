from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from unlearn_core.corpus.passages import Passage

from unlearn_core.corpus.windows import left_in
from unlearn_core.methods.base import Facts, Method, RunContext, knob
from unlearn_core.methods.shared.prefix import tokens_of, within_room

LOOKED_AT = 300  # retain texts, for short ones


@dataclass(frozen=True)
class InContext(Method):
    """A control, not unlearning: wrong answers about the target, then right ones about other things, before a question.

    The context is `flipped` forget examples, each with the answer of another text, and at step k k retain examples as
    they are (in-context unlearning, Pawelczyk et al. 2023, arXiv 2310.07579: a flipped label, then 2 to 8 correct
    ones). No weight changes: whoever asks without the context gets everything. An example is a pair, or of a text the
    line that the target stands in (else the first) and the line after it.
    """

    facts: ClassVar[Facts] = Facts(
        label="In-context (not unlearning, control)",
        formula=r"\pi(y \mid (x_f, \tilde y),\, (x_1, y_1), \dots, (x_k, y_k),\, x),\quad \theta = \theta_0",
        passes="none beside measuring, with the examples in front of every text",
        data="forget and retain texts, as examples",
        memory="nothing",
        fails="all is still known: a question without the context gets it; long contexts leave little room to answer",
        settings={"guard_rail": {"kind": "none"}, "schedule": {"steps": 6}, "guard": {"retain_budget": 0.0}},
        dial="right examples",
        where=("lora",),
        rails=("none",),
        trains=False,
        unlearns=False,
    )
    control: ClassVar[bool] = True

    flipped: int = knob(1, 1, 64, "Number of forget examples that are shown with a wrong answer, the shortest ones.")

    def apply_step(self, context: RunContext, step: int) -> dict[str, float]:
        return {"dial": float(step)}

    def prompt_prefix(self, context: RunContext, step: int) -> str:
        """The examples, one below the other: at most half of what the model can read, the last ones left out."""
        passages, steps = context.windows.texts, context.config.schedule.steps
        assert passages is not None
        forget = [example(passage) for passage in left_in(passages.forget, frozenset(context.config.data.excluded))]
        draw = random.Random(f"{context.config.seed} in context")
        drawn = [example(passage) for passage in draw.sample(passages.retain, min(LOOKED_AT, len(passages.retain)))]
        room = context.loaded.limit // 2 // (steps + 1)  # of one example
        short = islice((pair for pair in drawn if tokens_of(context, shown(*pair)) <= room), steps)
        right = list(short) or drawn[:steps]
        wrong = [answer or question for question, answer in right]
        shortest = sorted(forget, key=lambda pair: len("".join(pair)))[: self.flipped]
        flips = [(question, draw.choice(wrong)) for question, _ in shortest]
        return within_room(context, [shown(*pair) for pair in [*flips, *right[:step]]], "\n")


def example(passage: Passage) -> tuple[str, str]:
    """(question, answer): of a pair its own; of a text the line with the target (else the first), and the next one."""
    if passage.turns:
        return "\n".join(turn.text for turn in passage.turns[:-1]), passage.turns[-1].text
    place = passage.occurrences[0].start if passage.occurrences else 0
    begins = passage.text.rfind("\n", 0, place) + 1
    question, answer, *_ = [*passage.text[begins:].split("\n", 2), ""]
    return question, answer


def shown(question: str, answer: str) -> str:
    """An example as it stands in the context."""
    return f"{question}\n{answer}".strip("\n")


METHOD = InContext
