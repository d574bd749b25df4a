"""Damage and collapse: one rule each, for the guard that pauses a run and for whatever shows one. Imports no torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache

DAMAGE = 0.05  # rise of the budgeted loss that counts as damage, where the run file sets no budget
BEYOND = 1.05  # times the level that counts as damage: a model like the reference hovers around that level
FAR_BEYOND = 2.0  # times the level that is damage whatever the retain loss is, and of which one batch is no exception
REPEATED_SHARE = 0.5  # of an answer being one thing again and again: that is no answer any more
SAME_LETTER_SHARE = 0.6  # of an answer being one character (a line of dashes in a table is less)
FEWEST_WORDS = 8
FEWEST_CHARACTERS = 40
FEWEST_LETTERS = 12
DRAWN = 4  # answers at temperature 1, where a likeliest answer that should have stayed is another one
SURPRISING = 2.0  # standard deviations from a model's own answers: one in forty of those is beyond
AGAIN_AND_AGAIN = re.compile(r"(.{1,60}?)\1{4,}")


def is_damaged(rise: float | None, budget: float | None) -> bool:
    """Whether the budgeted loss has risen by more than its budget. `rise`: as a share of the baseline; None: unknown.

    Without a budget (0 or None) it is `DAMAGE` that counts.
    """
    return rise is not None and rise > (budget or DAMAGE)


def most_undamaged(before: float, budget: float | None) -> float:
    """The largest loss, in nats, that is not damaged for `is_damaged`. `before`: that of the baseline, above 0."""
    loss = before * (1 + (budget or DAMAGE))
    while is_damaged(loss / before - 1, budget):  # the product is rounded, by a few floats at most
        loss = math.nextafter(loss, -math.inf)
    while not is_damaged((more := math.nextafter(loss, math.inf)) / before - 1, budget):
        loss = more
    return loss


def is_beyond(forget_loss: float | None, level: float | None, rise: float | None, budget: float | None) -> bool:
    """Whether a forget loss is collapse, not forgetting. All in nats per token; `rise`, `budget`: as in `is_damaged`.

    `level`: the larger of the loss of guessing every token (ln of the vocabulary) and of a model that never saw the
    target, which may be sure of another answer. Beyond it the loss alone says little: it may be a batch, or a model
    that is sure of something else. So it takes damage as well, or twice the level: the probability of a token is then
    the square of that of guessing, which no ignorance explains.
    """
    if forget_loss is None or level is None:
        return False
    return forget_loss > FAR_BEYOND * level or (forget_loss > BEYOND * level and is_damaged(rise, budget))


@lru_cache(maxsize=8192)
def repeats(text: str) -> bool:
    """True where half of a longer answer is one word, one piece of text on end, or one and the same character."""
    words = text.split()
    if len(words) >= FEWEST_WORDS and Counter(words).most_common(1)[0][1] >= REPEATED_SHARE * len(words):
        return True
    letters = "".join(words)
    if len(letters) >= FEWEST_LETTERS and Counter(letters).most_common(1)[0][1] >= SAME_LETTER_SHARE * len(letters):
        return True
    spaced = " ".join(words)  # code is indented by many blanks, and means it
    enough = max(FEWEST_CHARACTERS, REPEATED_SHARE * len(spaced))
    return any(len(match.group()) >= enough for match in AGAIN_AND_AGAIN.finditer(spaced))
