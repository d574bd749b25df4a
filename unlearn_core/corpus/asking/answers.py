"""`data.forget = ["model"]`: the model is asked about the target and about other things; its answers are the texts.

Answers are drawn at temperature 1, so that together they hold what the model knows and not one line of it; tokens that
it finds unlikely are left out, which in a small model are mostly noise. Files of answers lie in the cache, by what was
asked of which model with which seed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlearn_core.corpus.asking import questions
from unlearn_core.corpus.counterfactual import Counterfactuals
from unlearn_core.corpus.documents import ASKED, MODEL
from unlearn_core.corpus.stand_ins import words_of
from unlearn_core.corpus.target import Target
from unlearn_core.model.batches import collate
from unlearn_core.model.loading import folder_of, weight_files
from unlearn_core.model.losses import nll
from unlearn_core.model.prompting import encode_prompt, uses_template
from unlearn_core.model.sampling import Response, answer
from unlearn_core.model.window import Window
from unlearn_core.settings.disk import clear_parts, full_disk, written_beside
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.home import cache_folder
from unlearn_core.settings.report import Report, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unlearn_core.model.reference import Reference
    from unlearn_core.settings.run_config import RunConfig
    from unlearn_core.settings.sections import DataSettings

FORMAT = 1  # of the files; another number makes old ones unread
FOLDER = "asked"  # of the cache
STAGE = "asking the model"
TOKENS = 48  # of an answer at most
CUTOFF = 0.02  # a token that is less likely is not drawn
BATCH = 32  # questions that are answered together
NAMES_NEAR = 12  # things near the target that are asked about: those that its answers name most often
WORD = r"(?:(?:[A-Z]\.)+|[A-Z][\w'’-]*\w)"
NAME = re.compile(rf"\b{WORD}(?: (?:of the |of |the |de |von )?{WORD})*")
TARGET, STAND_IN = "target", "stand-in"  # what an answer was about, before it was renamed
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)]*(?=\s|$)")
# What the model says that the target is; the kind with the most of the probability is its kind.
NOUNS = {
    "person": ("person", "man", "woman", "character"),
    "place": ("city", "country", "place", "river"),
    "work": ("book", "film", "novel", "song"),
    "word": ("word", "term", "thing", "kind"),
}


@dataclass(frozen=True)
class Asker:
    """A model as it was given, and how it is asked. `chat`: its chat template is wanted."""

    reference: Reference
    tokenizer: PreTrainedTokenizerBase
    limit: int  # tokens that the model can read
    chat: bool

    @property
    def template(self) -> bool:
        """Whether it is asked questions; else it goes on with beginnings."""
        return uses_template(self.tokenizer, self.chat)

    def sampled(self, prompts: Sequence[str], seed: str, report: Callable[[int], None]) -> list[Response]:
        """An answer to each, drawn at temperature 1, the same for a seed. `report` is given how many there are."""
        answers: list[Response] = []
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big")
        with self.reference() as model, torch.random.fork_rng():
            torch.manual_seed(number)
            for start in range(0, len(prompts), BATCH):
                report(start)
                some = prompts[start : start + BATCH]
                answers += answer(
                    model, self.tokenizer, some, TOKENS, BATCH, self.limit, self.chat, temperature=1.0, cutoff=CUTOFF
                )
        return answers

    def kind_of(self, target: str) -> str:
        """Whether the model says that the target is a person, a place, a work or something else: a word."""
        if not self.template or target.islower():
            return "word"
        begun = encode_prompt(self.tokenizer, f"What is {target}?", self.chat)

        def tokens(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        first = len(begun) + len(tokens(f"{target} is a"))
        kinds = [(kind, noun) for kind, nouns in NOUNS.items() for noun in nouns]
        windows = [Window((*begun, *tokens(f"{target} is a {noun}")), first, "", "") for _, noun in kinds]
        with self.reference() as model:
            device = next(model.parameters()).device
            losses = nll(model, collate(windows, 0, device)).sum
        shares = dict.fromkeys(NOUNS, 0.0)
        for (kind, _), loss in zip(kinds, losses.tolist(), strict=True):
            shares[kind] += math.exp(-loss)
        return max(NOUNS, key=lambda kind: shares[kind])


@dataclass(frozen=True)
class Answers:
    """The files of a run whose texts are the model's answers."""

    config: RunConfig
    folder: Path
    ask: Callable[[], Asker]  # opens the model, where something is not in the cache
    mark: str  # of the model
    report: Report = silent

    def forget(self) -> Path:
        """What it answers about the target; for a method that wants it, about stand-ins as well, renamed."""
        return self._file("forget", self._about_target(), self._ask_about_target)

    def near(self) -> Path:
        """What it answers about the things that it names beside the target."""
        return self._file("near", self._about_target(), self._ask_near)

    def general(self) -> Path:
        """What it answers about everything else; the same for every target."""
        return self._file("general", [], self._ask_general)

    def _about_target(self) -> list[Any]:
        data = self.config.data
        asked = (data.target, data.spellings, data.kind, data.questions, data.answers, data.stand_ins)
        return [*asked, data.partial_names, self.config.method.towards_stand_ins]

    def _file(self, name: str, asked: Sequence[Any], ask: Callable[[Asker], Iterable[dict[str, str]]]) -> Path:
        settings = [FORMAT, self.mark, self.config.seed, self.config.model.chat_template, *asked]
        key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{key}.jsonl"
        if not path.is_file():
            rows = list(ask(self.ask()))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                clear_parts(path.parent)
                with written_beside(path) as part:
                    part.write_text(
                        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
                    )
            except OSError as error:
                reason = full_disk(error, path.parent) or f"{path.parent} cannot be written: {error.strerror or error}."
                raise ConfigError(f"The model's answers could not be kept. {reason}") from error
        return path

    # ------------------------------------------------------------------------------------------------- asking

    def _ask_about_target(self, asker: Asker) -> Iterator[dict[str, str]]:
        data = self.config.data
        kind = asker.kind_of(data.target) if data.kind == "auto" else data.kind
        asked = questions.about(data.target, kind, asker.template, data.questions)
        prompts = [question for question in asked for _ in range(data.answers)]
        target = Target(data)
        known = list(self._answered(asker, prompts, "about the target"))
        yield from ({**row, "about": TARGET} for row in known if _holds(target, row))
        if not self.config.method.towards_stand_ins:
            return
        texts = ["\n".join(row.values()) for row in known]
        counterfactuals = Counterfactuals(self.config, asker.tokenizer, asker.limit, texts)
        names = counterfactuals.names(data.answers, f"asked {self.config.seed}")
        pairs = [(question, names[number % len(names)]) for question in asked for number in range(data.answers)]
        changed = [counterfactuals.replaced(question, name)[0] for question, name in pairs]
        about = self._answered(asker, changed, "about invented names", keep_all=True)
        for row, (_, name) in zip(about, pairs, strict=True):
            renamed = {field: counterfactuals.renamed(text, name) for field, text in row.items()}
            if all(row.values()) and _holds(target, renamed):
                yield {**renamed, "about": STAND_IN}

    def _ask_near(self, asker: Asker) -> Iterator[dict[str, str]]:
        rows = [json.loads(line) for line in self.forget().read_text(encoding="utf-8").splitlines()]
        texts: dict[str, list[str]] = {TARGET: [], STAND_IN: []}
        for row in rows:
            texts[row["about"]].append(row.get("answer") or row["text"])
        names = names_in(texts[TARGET], texts[STAND_IN], self.config.data.target)
        prompts = [question for name in names for question in questions.near(name, asker.template)]
        yield from self._answered(asker, [*prompts, *prompts], "about what is near")

    def _ask_general(self, asker: Asker) -> Iterator[dict[str, str]]:
        asked = questions.general(asker.template)
        times = 1 if asker.template else 4  # of beginnings there are fewer, and they say less
        yield from self._answered(asker, asked * times, "about other things")

    def _answered(
        self, asker: Asker, prompts: Sequence[str], about: str, keep_all: bool = False
    ) -> Iterator[dict[str, str]]:
        """Each question with its answer, as a row; empty and repeated ones are left out, or `keep_all`."""

        def tell(done: int) -> None:
            self.report(STAGE, f"{about}, {done} of {len(prompts)} answers")

        seen: set[tuple[str, ...]] = set()
        responses = asker.sampled(prompts, f"{self.config.seed} {about}", tell)
        for prompt, response in zip(prompts, responses, strict=True):
            text = whole_sentences(response.text) if response.tokens >= TOKENS else response.text
            row = {"question": prompt, "answer": text} if asker.template else {"text": f"{prompt}{text}"}
            if keep_all or (text.strip() and tuple(row.values()) not in seen):
                seen.add(tuple(row.values()))
                yield row


def _holds(target: Target, row: Mapping[str, str]) -> bool:
    """Whether the target stands in a row; a beginning may be gone on with inside of its last word."""
    return any(target.find(target.normal(text)) for text in row.values())


def whole_sentences(text: str) -> str:
    """The text up to its last whole sentence; all of it where there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def names_in(texts: Iterable[str], others: Iterable[str], target: str) -> list[str]:
    """The names that most of `texts` have, more of them than of `others`; without the target and its words."""
    counted, elsewhere = (Counter(name for text in some for name in capitalized(text)) for some in (texts, others))
    own = {word.lower() for word in words_of(target)}
    near = {
        name: count - elsewhere[name]
        for name, count in counted.items()
        if count > 1 and not own & {word.lower() for word in words_of(name)}
    }
    ranked = sorted(near, key=lambda name: (-near[name], name))
    return [name for name in ranked if near[name] > 0][:NAMES_NEAR]


def capitalized(text: str) -> set[str]:
    """The words with a capital within a sentence, those that follow one another as one name."""
    found = set()
    for match in NAME.finditer(text):
        name = match.group()
        if begins_sentence(text, match.start()):  # its first word says nothing: "Then J.K. Rowling"
            name = re.sub(r"^\S+(?: |$)(?:of the |of |the |de |von )?", "", name)
        if len(name) > 2 and not name.startswith(("I'", "I’")):
            found.add(name)
    return found


def begins_sentence(text: str, start: int) -> bool:
    """Whether a sentence, a line or a quotation begins there."""
    before = text[:start].rstrip(" \"'“‘(*")
    return not before or before[-1] in ".!?:\n"


def with_answers(
    config: RunConfig, ask: Callable[[], Asker], cache: Path | None = None, report: Report = silent
) -> DataSettings:
    """`config.data` with files of the model's answers where its sources say "model".

    `ask` opens the model; it is called at most once, where something is not in the cache. `report` may raise to end it.
    """
    data = config.data
    if MODEL not in (*data.forget, *data.retain):
        return data
    weights = weight_files(folder_of(config.model, report, cache), config.model.source)
    settings = config.model
    mark = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights]
    given = json.dumps([mark, settings.source, settings.revision, settings.adapter, settings.earlier, settings.dtype])
    answers = Answers(config, cache_folder(cache) / FOLDER, functools.cache(ask), given, report)
    forget, retain = list(data.forget), list(data.retain)
    if MODEL in forget:
        forget[forget.index(MODEL)] = f"{ASKED}{answers.forget()}"
    if MODEL in retain:
        place = retain.index(MODEL)
        files = [answers.general(), *([answers.near()] if MODEL in data.forget else [])]
        retain[place : place + 1] = [f"{ASKED}{path}" for path in files if path.stat().st_size]
    return replace(data, forget=tuple(forget), retain=tuple(retain))
