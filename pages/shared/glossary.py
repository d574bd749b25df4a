"""What a loss is called on every page, and what it is in one sentence, for a hover."""

from __future__ import annotations

MEANING = {
    "forget_loss": "Forget loss: nats per token on the passages to forget; it rises as they are forgotten.",
    "retain_loss": "Retain loss: nats per token on texts to keep, which training also sees.",
    "neighbour_loss": "Neighbour loss: nats per token on texts about the same things without the target.",
    "holdout_loss": "Holdout loss: nats per token on texts to keep that are never trained on; the budget limits it.",
}


def loss(name: str) -> str:
    """`holdout_loss` -> `holdout loss`."""
    return name.replace("_", " ")
