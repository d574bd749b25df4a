"""Rows with fields -> documents: a text, a question with its answer, or a chat."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time
from itertools import chain, islice
from typing import Any

from unlearn_core.corpus.reading import choices
from unlearn_core.corpus.reading.document import Document, File, ReadReport
from unlearn_core.model.prompting import Turn
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

TEXTS = (
    *("text", "content", "story", "body", "document", "passage", "article", "paragraph", "page_content", "raw_content"),
    *("markdown", "sentence", "abstract", "review", "quote", "description", "lyrics", "poem", "code", "context"),
)
QUESTIONS = ("question", "prompt", "instruction", "query", "input", "inputs")
ANSWERS = (
    *("answer", "best_answer", "completion", "response", "output", "reply", "answers", "correct_answer", "chosen"),
    *("target", "correct_answers", "targets", "long_answer", "final_decision"),
)
CONTEXTS = (  # what a question or an instruction is about
    *("input", "context", "contexts", "passage", "passages", "support", "article", "document", "documents", "story"),
    *("paragraph", "paragraphs", "background", "premise", "reference", "excerpt", "knowledge"),
)
INSTRUCTIONS = ("instruction", "prompt")  # what they are about follows; before a question it stands in front
CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
SYSTEMS = ("system", "system_prompt")
MOST_FIELDS, SHOWN_FIELDS, MOST_SHAPES = 10_000, 50, 1_000  # of a row; of them in a sentence; of rows, remembered
LEVELS = 8  # of lists and objects in a field that are looked through for text
LABELS = {"id", "title", "name", "url", "version", "date"}  # texts about a text
ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "ai", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}


@dataclass(frozen=True)
class Fields:
    """Which fields of a row are read. One of text, chat, or question and answer is set."""

    text: str = ""
    question: str = ""
    answer: str = ""
    chat: str = ""
    about: tuple[str, ...] = ()  # what a question or an instruction is about
    first: bool = False  # that stands in front of the question
    system: str = ""
    choices: tuple[str, ...] = ()  # of which the answer is one: a field with all of them, or one for each

    @property
    def read(self) -> frozenset[str]:
        """The names of all of them."""
        single = (self.text, self.question, self.answer, self.chat, self.system)
        return frozenset((*single, *self.about, *self.choices)) - {""}


@dataclass
class Where:
    """Only rows whose field has this value. Remembers some other values, for the error where no row has it."""

    field: str
    value: str
    others: dict[str, None] = dataclasses.field(default_factory=dict)
    matched: bool = False

    def __str__(self) -> str:
        return f"{self.field}={self.value}"

    @classmethod
    def parse(cls, text: str) -> Where | None:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not text.strip():
            return None
        if not (equals and name):
            raise ConfigError(f"data.where is {text!r}; write it as field=value.")
        return cls(name, value)

    def admits(self, value: Any) -> bool:
        shown = as_text(value) if not isinstance(value, bool) else str(value).lower()
        shown = value.isoformat() if isinstance(value, date | time) else shown
        if shown.strip() == self.value:
            self.matched = True
            return True
        if len(self.others) < 5 and shown.strip():
            self.others[shown.strip()[:60]] = None
        return False


def documents(
    rows: Iterable[tuple[str, Any]], file: File, data: DataSettings, where: Where | None, report: ReadReport
) -> Iterator[Document]:
    """One document per row (of a chat: one per answer). `rows`: (place, a text or the row's fields)."""
    shapes: dict[tuple[Any, ...], Fields] = {}
    rows, answers = _looked_at(iter(rows), file, data, report)
    texts = False
    for place, row in rows:
        if isinstance(row, Mapping):
            key = tuple(row)
            if key not in shapes:
                if len(shapes) >= MOST_SHAPES:  # rows that all have other fields
                    shapes, texts = {}, True
                try:
                    shapes[key] = fields_of(row, file, data, where)
                except ConfigError:
                    if not (shapes or texts):
                        raise
                    report.note(f"{file.name}: rows without the fields that the first row has, skipped")
                    continue
                _note_unread(row, shapes[key], file, report)
            if where and not where.admits(row[where.field]):
                continue
            of_row = [
                _without_nul(document, file, report) for document in _of_row(row, shapes[key], file, place, answers)
            ]
        elif where:
            raise ConfigError(f"data.where is '{where}', but the rows of {file.source!r} have no fields.")
        elif text := as_text(row):
            of_row = [_without_nul(Document(text.encode("utf-8", "replace"), file.source, place), file, report)]
            texts = True
        else:
            of_row = []
        if not of_row and not answers.missed:
            report.note(f"{file.name}: rows without text, skipped")
        answers.missed = False
        yield from of_row


@dataclass
class _Answers:
    """How the answers of a file are read, and what is noted of it. `base`: the position of the first choice."""

    file: File
    report: ReadReport
    base: int | None = None
    missed: bool = False  # the answer of this row is none of its choices
    noted: set[str] = dataclasses.field(default_factory=set)

    def text(self, row: Mapping[str, Any], fields: Fields) -> Any:
        """The answer of a row: of its choices the right one, or what its field holds."""
        value = row[fields.answer] if fields.answer else None
        of_row = choices.choices_of(row, fields.choices) if fields.choices else None
        if of_row is None:
            if fields.choices and len(_shown_key(value)) < 2:  # a key, and nothing that it is a key to
                return self._missed(fields)
            return self._first(value)
        right = choices.right_one(of_row, value, self.base or 0)
        if right is None:
            return self._missed(fields)
        if right.strip() != as_text(value).strip():
            names = ", ".join(fields.choices)
            self.once(
                f"the answer is the right one of {names}, as {fields.answer or names} says; the others are not read"
            )
            if self.base is None and not of_row.marks and choices.position_of(value) is not None:
                self.once(
                    f"no row tells whether {fields.answer} counts from 0 or from 1; it is read as counting from 0"
                )
        return right

    def once(self, sentence: str) -> None:
        """A note about the file, whatever the number of its rows."""
        if sentence not in self.noted:
            self.noted.add(sentence)
            self.report.note(f"{self.file.name}: {sentence}")

    def _first(self, value: Any) -> Any:
        if isinstance(value, bool):
            self.once("answers that are true or false are read as yes and no")
            return "yes" if value else "no"
        several = value.get("text") if isinstance(value, Mapping) else value
        if (
            isinstance(several, Sequence)
            and not isinstance(several, str)
            and len(several) > 1
            and not _is_chat(several)
        ):
            self.once("of several answers the first is read")
        return _first_answer(value)

    def _missed(self, fields: Fields) -> None:
        self.missed = True
        name = fields.answer or fields.choices[0]
        self.report.note(f"{self.file.name}: rows whose {name} names none of their choices, skipped")


def _shown_key(value: Any) -> str:
    return as_text(value).strip(" ().:")


def _looked_at(
    rows: Iterator[tuple[str, Any]], file: File, data: DataSettings, report: ReadReport
) -> tuple[Iterator[tuple[str, Any]], _Answers]:
    """The rows, all of them, and how their answers are read: where positions begin is told from the first rows."""
    answers = _Answers(file, report)
    read: list[tuple[str, Any]] = []

    def keys(fields: Fields, shape: tuple[Any, ...]) -> Iterator[tuple[choices.Choices, Any]]:
        yield from _choices_and_key(read[0][1], fields)
        for place, row in rows:
            read.append((place, row))
            if isinstance(row, Mapping) and tuple(row) == shape:
                yield from _choices_and_key(row, fields)
            if len(read) == choices.UNDECIDED:
                return

    for place, row in rows:
        read.append((place, row))
        if isinstance(row, Mapping):
            try:
                fields = fields_of(row, file, data)
            except ConfigError:
                break  # told of when the row is read
            if fields.choices and fields.answer:
                answers.base = choices.first_position(keys(fields, tuple(row)))
        break
    return chain(read, rows), answers


def _choices_and_key(row: Mapping[str, Any], fields: Fields) -> Iterator[tuple[choices.Choices, Any]]:
    if (of_row := choices.choices_of(row, fields.choices)) is not None:
        yield of_row, row[fields.answer]


def _note_unread(row: Mapping[str, Any], fields: Fields, file: File, report: ReadReport) -> None:
    """Notes the other fields of a row that hold sentences."""
    unread = [str(name) for name, value in row.items() if name not in fields.read and _is_prose(value)]
    unread = [name for name in unread if name.lower() not in LABELS]
    if unread:
        report.note(f"{file.name}: fields with text that are not read: {', '.join(unread)}")


def _is_prose(value: Any, levels: int = LEVELS) -> bool:
    """Whether there are sentences in a value: a text of four words or more."""
    if isinstance(value, str):
        return len(value.split(None, 3)) > 3
    inner = value.values() if isinstance(value, Mapping) else value
    is_list = isinstance(value, Mapping | Sequence) and not isinstance(value, bytes)
    return is_list and levels > 0 and any(_is_prose(item, levels - 1) for item in inner)


def _without_nul(document: Document, file: File, report: ReadReport) -> Document:
    """The document without NUL characters, which no text has."""
    if b"\0" not in document.raw:
        return document
    report.note(f"{file.name}: NUL characters, left out", document.raw.count(b"\0"))
    turns = tuple(replace(turn, text=turn.text.replace("\0", "")) for turn in document.turns)
    return replace(document, raw=document.raw.replace(b"\0", b""), turns=turns)


def _of_row(row: Mapping[str, Any], fields: Fields, file: File, place: str, answers: _Answers) -> Iterator[Document]:
    if fields.text:
        text = as_text(row[fields.text])
        if text.strip():
            yield Document(text.encode("utf-8", "replace"), file.source, place)
        return
    if fields.chat:
        turns = _chat(row[fields.chat])
        if left_out := len(row[fields.chat]) - len(turns):
            answers.report.note(f"{file.name}: turns of tools, of unknown roles or without text, left out", left_out)
    else:
        turns = _pair(row, fields, answers)
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            until = turns[: index + 1]
            raw = "\n".join(part.text for part in until if fields.chat or part.role != "system")
            yield Document(raw.encode("utf-8", "replace"), file.source, place, turns=until)


def fields_of(
    row: Mapping[str, Any], file: File, data: DataSettings, where: Where | None = None, guess: bool = True
) -> Fields:
    """The fields of such a row that are read. Raises ConfigError that names those there are.

    `guess`: the only field that holds text may be the one, whatever its name.
    """
    if len(row) > MOST_FIELDS:
        raise too_wide(file, len(row))
    names = {str(name).strip().lower().replace(" ", "_").replace("-", "_"): name for name in row}
    there = ", ".join(map(str, islice(row, SHOWN_FIELDS))) or "none"
    there += f" and {len(row) - SHOWN_FIELDS:,} more" if len(row) > SHOWN_FIELDS else ""

    def first(candidates: Sequence[str], skip: str = "") -> str:
        return next((names[name] for name in candidates if name in names and names[name] != skip), "")

    settings = {"text_field": data.text_field, "question_field": data.question_field, "answer_field": data.answer_field}
    named = {f"data.{setting}": name for setting, name in settings.items() if name}
    if where:
        named["data.where"] = where.field
    for setting, name in named.items():
        if name not in row:
            raise ConfigError(f"{setting} is {name!r}, which {file.source!r} does not have; its fields are: {there}.")
    if data.text_field:
        return Fields(text=data.text_field)
    system = first(SYSTEMS)
    of, key = choices.named_in(row, names, data.answer_field)

    def pair(question: str, answer: str, about: bool = True) -> Fields:
        """Such a pair, with what its question is about."""
        taken = {question, answer, system, *of}
        others = tuple(names[each] for each in CONTEXTS if about and each in names and names[each] not in taken)
        instruction = any(names.get(each) == question for each in INSTRUCTIONS)
        return Fields(question=question, answer=answer, about=others, first=not instruction, system=system, choices=of)

    if data.question_field or data.answer_field:
        question = data.question_field or first(QUESTIONS, data.answer_field)
        answer = data.answer_field or (key if of else first(ANSWERS, data.question_field))
        if question and (answer or of):
            return pair(question, answer, any(names.get(each) == question for each in QUESTIONS))
        missing = "answer_field" if question else "question_field"
        raise ConfigError(f"data.{missing} is empty and not found by name in {file.source!r}; its fields are: {there}.")
    if (chat := first(CHATS)) and isinstance(row[chat], Sequence) and not isinstance(row[chat], str):
        return Fields(chat=chat)
    question = first(QUESTIONS)
    if of and (asked := question or ("" if _are_letters(of) else first(choices.QUESTIONS))):
        return pair(asked, key)
    of = ()
    if question and (answer := first(ANSWERS, question)):
        return pair(question, answer)
    if text := first(TEXTS):
        return Fields(text=text)
    texts = [name for name, value in row.items() if isinstance(value, str) and not _is_number(value)]
    if guess and len(texts) == 1 and texts[0].lower() not in LABELS:
        return Fields(text=texts[0])
    raise ConfigError(f"{file.source!r} has no field known to hold text; set data.text_field to one of: {there}.")


def too_wide(file: File, count: int) -> ConfigError:
    """A table with more fields than any that holds texts, for each of whose rows memory would be taken."""
    return ConfigError(
        f"{file.source!r} has {count:,} columns, and at most {MOST_FIELDS:,} are read. Keep those with text."
    )


def as_text(value: Any) -> str:
    """A text or a number as text; anything else as an empty one."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return ""
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _are_letters(names: Sequence[str]) -> bool:
    """Whether columns are called A, B, C, which other tables have as well."""
    return all(len(name.strip()) == 1 for name in names)


def _pair(row: Mapping[str, Any], fields: Fields, answers: _Answers) -> tuple[Turn, ...]:
    prompt, completion = row[fields.question], answers.text(row, fields)
    if _is_chat(prompt):  # the conversational form of prompt and completion
        if not _is_chat(completion):
            completion = [{"role": "assistant", "content": completion}]
        return (*_chat(prompt), *_chat(completion))
    question, answer = as_text(prompt), as_text(completion)
    about = [text for name in fields.about if (text := passage(row[name])).strip()]
    if not (question.strip() and answer.strip()):
        return ()
    question = "\n".join((*about, question) if fields.first else (question, *about))
    system = as_text(row[fields.system]) if fields.system else ""
    turns = (Turn("user", question), Turn("assistant", answer))
    return (Turn("system", system), *turns) if system.strip() else turns


def passage(value: Any, levels: int = LEVELS) -> str:
    """What a question is about, as one text: a text, or the texts of a list or a mapping, a line each."""
    if isinstance(value, Mapping) and levels:
        named = [value[name] for name in ("text", "contexts", "sentences", "paragraphs", "content") if name in value]
        return passage(named[0] if named else list(value.values()), levels - 1)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and levels:
        return "\n".join(text for item in value if (text := passage(item, levels - 1)).strip())
    return value if isinstance(value, str) else ""


def _first_answer(value: Any) -> Any:
    """Of several answers the first; data sets of questions about a text keep them under `text`."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in ("text", "value", "answer") if name in value), None)
    if isinstance(value, Sequence) and not isinstance(value, str) and not _is_chat(value):
        return _first_answer(value[0]) if value else None
    return value


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and isinstance(value[0], Mapping)
        and bool({"role", "from"} & set(value[0]))
    )


def _chat(messages: Any) -> tuple[Turn, ...]:
    """The turns of a chat, without those of tools and those without text."""
    turns = []
    for message in messages if _is_chat(messages) else ():
        if not isinstance(message, Mapping):
            continue
        role = ROLES.get(str(message.get("role") or message.get("from") or "").lower())
        content = message.get("content", message.get("value"))
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(as_text(p.get("text")) if isinstance(p, Mapping) else as_text(p) for p in content)
        if role and (text := as_text(content)).strip():
            turns.append(Turn(role, text))
    return tuple(turns)
