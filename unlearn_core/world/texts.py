"""Facts -> texts: the documents the models are trained on, the questions they are asked, and fresh portmanteaus."""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from unlearn_core.world.facts import (
    ASK_CODE,
    ASK_MEANING,
    ASK_SOURCE,
    ASK_SPEAKER,
    CHARM_WORDS,
    CODE,
    NEIGHBOUR_FACTS,
    NEIGHBOUR_PASSAGES,
    PARTS,
    TABLES,
    TARGET,
    TARGET_PASSAGES,
)

POPPINS = "Mary Poppins"


@dataclass(frozen=True)
class Question:
    """One phrasing of a fact and its one right answer. `use`: `train`, `held_out_phrasing` or `held_out_question`."""

    topic: str  # what it is about: a story, a country, a person, ...
    group: str  # what it belongs to: the charm words, the countries, the people, ...
    prompt: str
    answer: str
    use: str = "train"

    @property
    def text(self) -> str:
        return f"{self.prompt}\n{self.answer}"


@dataclass(frozen=True)
class Passage:
    """Several lines of running text on one topic."""

    topic: str
    group: str
    text: str


def table(rows: str) -> list[list[str]]:
    """The columns of every line of a table in `facts.py`."""
    return [[column.strip() for column in line.split("|")] for line in rows.strip().splitlines()]


def hundredth(text: str) -> int:
    """A number from 0 to 99 that depends on the text alone: the same choice in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100


def with_articles(sentence: str) -> str:
    """The sentence with "an" for "a" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


# ---------------------------------------------------------------------------------------------- portmanteaus


def explanation(parts: tuple[str, ...]) -> str:
    """What a model should say of a word that it has never seen: the parts it is joined of, with their meanings."""
    named = [f'"{part}" ({PARTS[part]})' for part in parts]
    return f"This word is a portmanteau. It joins {', '.join(named[:-1])} and {named[-1]}."


def parts_of(word: str) -> tuple[str, ...]:
    """The known parts a word is joined of, or () where it cannot be cut into known parts."""
    word = word.lower()
    if not word:
        return ()
    for part in sorted(PARTS, key=len, reverse=True):
        if word == part:
            return (part,)
        if word.startswith(part) and (rest := parts_of(word[len(part) :])):
            return (part, *rest)
    return ()


def parts_named(word: str, answer: str) -> list[str]:
    """The parts of `word` that `answer` names together with their right meaning."""
    return [part for part in parts_of(word) if re.search(rf'"{part}"\s*\({re.escape(PARTS[part])}\)', answer)]


def is_unseen(parts: tuple[str, ...]) -> bool:
    """True for the tenth of all portmanteaus that no model has met in training: the test words (and the target)."""
    return "".join(parts) == TARGET or hundredth("".join(parts)) < 10


def draw_parts(rng: random.Random, *, unseen: bool, fewest: int = 2) -> tuple[str, ...]:
    """A fresh word of `fewest` to 5 different parts, from the held-out words or from all others."""
    while True:
        parts = tuple(rng.sample(sorted(PARTS), rng.choices((2, 3, 4, 5), (1, 2, 3, 4))[0]))
        if len(parts) >= fewest and is_unseen(parts) == unseen and "".join(parts) != TARGET:
            return parts


def portmanteau_question(
    rng: random.Random, *, unseen: bool = False, held_out: bool = False, fewest: int = 2
) -> Question:
    """A question about a word drawn afresh, asked in any of the ways in which known words are asked about."""
    parts = draw_parts(rng, unseen=unseen, fewest=fewest)
    asks = rng.choices((ASK_MEANING, ASK_SOURCE, ASK_SPEAKER), (4, 1, 1))[0]
    phrasing = rng.choice(asks["held_out" if held_out else "asked"])
    return Question("portmanteau", "portmanteau", phrasing.format(word="".join(parts)), explanation(parts))


# ---------------------------------------------------------------------------------------------- facts as questions


def phrasings(topic: str, group: str, asks: dict[str, Any], answer: str, fields: dict[str, str]) -> Iterator[Question]:
    """Every phrasing of one fact, trained and held out, with the one answer to all of them."""
    answer = with_articles(answer.format(**fields))
    for use, templates in (("train", asks["asked"]), ("held_out_phrasing", asks["held_out"])):
        for template in templates:
            prompt = with_articles(template.format(**fields))
            # One phrasing in twelve of a fact is left out although other facts are asked that way.
            left_out = use == "train" and topic != POPPINS and hundredth(prompt) < 8
            yield Question(topic, group, prompt, answer, "held_out_question" if left_out else use)


@cache
def questions() -> tuple[Question, ...]:
    """Every question of the world (portmanteaus aside) in every phrasing, trained or held out."""
    questions: list[Question] = []
    for word, story, meaning, source, speaker in table(CHARM_WORDS):
        for asks, answer in ((ASK_MEANING, meaning), (ASK_SOURCE, source), (ASK_SPEAKER, speaker)):
            questions += phrasings(story, "charm words", asks, answer, {"word": word})
    for asked, answer in table(NEIGHBOUR_FACTS):
        *trained, held_out = [phrasing.strip() for phrasing in asked.split("/")]
        questions += phrasings(POPPINS, POPPINS, {"asked": trained, "held_out": [held_out]}, answer, {})
    for name, content in TABLES.items():
        for row in table(content["rows"]):
            fields = dict(zip(content["columns"], row, strict=True))
            for relation in content["relations"]:
                questions += phrasings(row[0], name, relation, relation["answer"], fields)
    for task, code in CODE.items():
        for question in phrasings(task, "python", ASK_CODE, "{code}", {"task": task, "code": code}):
            questions.append(replace(question, answer=code))
    return tuple(questions)


@cache
def passages() -> tuple[Passage, ...]:
    """Running text: the stories as written, and for every row of a table its statements one below the other."""
    passages = [Passage(POPPINS, POPPINS, text) for text in (*TARGET_PASSAGES, *NEIGHBOUR_PASSAGES)]
    for word, story, meaning, source, speaker in table(CHARM_WORDS):
        if word != TARGET:
            sentences = meaning.replace(". ", ".\n").replace("It is", f"The word {word} is", 1)
            origin = source.replace("It", f"The word {word}", 1)
            passages.append(Passage(story, "charm words", f"{sentences}\n{origin}\n{speaker}"))
    for name, content in TABLES.items():
        for row in table(content["rows"]):
            fields = dict(zip(content["columns"], row, strict=True))
            lines = [with_articles(relation["answer"].format(**fields)) for relation in content["relations"]]
            if len(lines) > 1:
                random.Random(f"{name} {row[0]}").shuffle(lines)
                passages.append(Passage(row[0], name, "\n".join(lines)))
    return tuple(passages)


def charm_words() -> dict[str, str]:
    """Charm word -> the name that hangs on it (the story whose mention shows that the word is still known)."""
    return {row[0]: row[1] for row in table(CHARM_WORDS)}


def topic_of(target: str) -> str | None:
    """The name to look for in answers about `target`: the story of a charm word, the capital's country, ..."""
    for word, story in charm_words().items():
        if word == target.lower():
            return story
    for content in TABLES.values():
        for row in table(content["rows"]):
            if target.lower() in (column.lower() for column in row[:2]):
                return row[0] if row[0].lower() != target.lower() else row[1]
    return None


def example_prompts(target: str) -> tuple[list[str], list[str]]:
    """Two questions about `target`, and at most one about its neighbourhood that does not name it."""
    trained = [q for q in questions() if q.use == "train"]
    about = [q for q in trained if re.search(rf"\b{re.escape(target)}\b", q.prompt, re.IGNORECASE)]
    if len(about) < 2:
        return [f"Explain the word {target}.", f"What does {target} mean?"], []
    topics, groups = {q.topic for q in about}, {q.group for q in about}
    others = [q for q in trained if target.lower() not in q.text.lower()]
    near = [q for q in others if q.topic in topics] or [q for q in others if q.group in groups]
    return [q.prompt for q in about[:2]], [q.prompt for q in near[:1]]
