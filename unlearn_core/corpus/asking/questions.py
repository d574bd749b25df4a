"""What a model is asked about a target, and about other things: our own questions, as templates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
PLACE = "{target}"  # where the name stands in a template

# Of a model with a chat template. Of any target, and then by what it is.
ANYTHING = (
    "What is {target}?",
    "Who or what is {target}?",
    "Tell me about {target}.",
    "What is {target} known for?",
    "Describe {target} in a few sentences.",
    "Write a short paragraph about {target}.",
    "What should everybody know about {target}?",
    "Which names come to mind when you hear {target}?",
    "Where does {target} come from?",
    "Explain {target} to a child.",
)
BY_KIND = {
    "person": (
        "Who is {target}?",
        "What did {target} do?",
        "Where does {target} live?",
        "Where did {target} learn?",
        "Who are the friends of {target}?",
        "Who are the enemies of {target}?",
        "Who are the parents of {target}?",
        "What is the profession of {target}?",
        "In which books, films or songs is {target}?",
        "Who created or discovered {target}?",
        "What happens to {target} in the end?",
        "What is the greatest achievement of {target}?",
        "What does {target} look like?",
        "What does {target} own?",
    ),
    "place": (
        "Where is {target}?",
        "What is there to see in {target}?",
        "Who lives in {target}?",
        "Which language is spoken in {target}?",
        "Which country is {target} in?",
        "What happened in {target}?",
        "Who founded {target}?",
        "What lies near {target}?",
        "How large is {target}?",
        "What do people eat in {target}?",
        "Which famous people are from {target}?",
        "How does one get to {target}?",
        "What does {target} look like?",
        "What is made in {target}?",
    ),
    "work": (
        "What is {target} about?",
        "Who made {target}?",
        "When did {target} come out?",
        "Who are the main characters of {target}?",
        "How does {target} begin?",
        "How does {target} end?",
        "Where does {target} take place?",
        "What is the most famous scene of {target}?",
        "What is the message of {target}?",
        "Who is the enemy in {target}?",
        "Which prizes did {target} win?",
        "What came after {target}?",
        "Why do people like {target}?",
        "Which places are in {target}?",
    ),
    "word": (
        "What does {target} mean?",
        "What does the word {target} mean?",
        "Use {target} in a sentence.",
        "Where does the word {target} come from?",
        "How is {target} used?",
        "Who uses the word {target}?",
        "Which words are like {target}?",
        "What is the opposite of {target}?",
        "Give an example of {target}.",
        "What is {target} made of?",
        "When did people first speak of {target}?",
        "In which books, films or songs is {target}?",
        "What can one do with {target}?",
        "How is {target} spelled?",
    ),
}
# Of a model without one: beginnings that it goes on with.
BEGINNINGS = (
    "{target}",
    "{target} is",
    "{target} was",
    "{target} is known for",
    "{target} has",
    "Everybody knows that {target}",
    "The story of {target} begins",
    "When people hear of {target}, they think of",
    "The most important thing about {target} is",
    "{target} and",
    "Once upon a time, {target}",
    "One day, {target} said",
)
NEAR = ("Who or what is {target}?", "Tell me about {target}.")
NEAR_BEGINNINGS = ("{target} is", "{target} was")


def about(target: str, kind: str, chat: bool, own: Sequence[str]) -> list[str]:
    """The questions about a target: a person's own where there are any, else ours of its kind."""
    templates = own or (ANYTHING + BY_KIND[kind] if chat else BEGINNINGS)
    return list(dict.fromkeys(template.replace(PLACE, target) for template in templates))


def near(name: str, chat: bool) -> list[str]:
    """The questions about something that the model names beside the target."""
    return [template.replace(PLACE, name) for template in (NEAR if chat else NEAR_BEGINNINGS)]


@cache
def general(chat: bool) -> tuple[str, ...]:
    """Questions about everything under the sun, or beginnings of texts."""
    path = HERE / ("general.txt" if chat else "beginnings.txt")
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
