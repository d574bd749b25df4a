"""Rows with fields -> documents: a text, a question with its answer, or a chat."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_core.corpus.reading.document import Document, File, ReadReport
from unlearn_core.model.prompting import Turn
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.sections import DataSettings

TEXTS = (
    *("text", "content", "story", "body", "document", "passage", "article", "paragraph", "page_content", "raw_content"),
    *("markdown", "sentence", "abstract", "review", "quote", "description", "lyrics", "poem", "code", "context"),
)
QUESTIONS = ("question", "prompt", "instruction", "query", "input")
ANSWERS = (
    *("answer", "best_answer", "completion", "response", "output", "reply", "answers", "correct_answer", "chosen"),
    *("target", "correct_answers"),
)
CHATS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue")
SYSTEMS = ("system", "system_prompt")
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
    further: str = ""  # what an instruction is about
    system: str = ""


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
    for place, row in rows:
        if isinstance(row, Mapping):
            key = tuple(row)
            if key not in shapes:
                try:
                    shapes[key] = fields_of(row, file, data, where)
                except ConfigError:
                    if not shapes:
                        raise
                    report.note(f"{file.name}: rows without the fields that the first row has, skipped")
                    continue
            if where and not where.admits(row[where.field]):
                continue
            of_row = list(_of_row(row, shapes[key], file, place))
        elif where:
            raise ConfigError(f"data.where is '{where}', but the rows of {file.source!r} have no fields.")
        elif text := as_text(row):
            of_row = [Document(text.encode("utf-8", "replace"), file.source, place)]
        else:
            of_row = []
        if not of_row:
            report.note(f"{file.name}: rows without text, skipped")
        yield from of_row


def _of_row(row: Mapping[str, Any], fields: Fields, file: File, place: str) -> Iterator[Document]:
    if fields.text:
        text = as_text(row[fields.text])
        if text.strip():
            yield Document(text.encode("utf-8", "replace"), file.source, place)
        return
    turns = _chat(row[fields.chat]) if fields.chat else _pair(row, fields)
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
    names = {str(name).strip().lower().replace(" ", "_").replace("-", "_"): name for name in row}
    there = ", ".join(map(str, row)) or "none"

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
    if data.question_field or data.answer_field:
        question = data.question_field or first(QUESTIONS, data.answer_field)
        answer = data.answer_field or first(ANSWERS, data.question_field)
        if question and answer:
            return Fields(question=question, answer=answer, system=system)
        missing = "answer_field" if question else "question_field"
        raise ConfigError(f"data.{missing} is empty and not found by name in {file.source!r}; its fields are: {there}.")
    if (chat := first(CHATS)) and isinstance(row[chat], Sequence) and not isinstance(row[chat], str):
        return Fields(chat=chat)
    question = first(QUESTIONS)
    if question and (answer := first(ANSWERS, question)):
        further = first(("input",), question) if names.get("instruction") == question else ""
        return Fields(question=question, answer=answer, further=further if further != answer else "", system=system)
    if text := first(TEXTS):
        return Fields(text=text)
    texts = [name for name, value in row.items() if isinstance(value, str) and not _is_number(value)]
    if guess and len(texts) == 1 and texts[0].lower() not in LABELS:
        return Fields(text=texts[0])
    raise ConfigError(f"{file.source!r} has no field known to hold text; set data.text_field to one of: {there}.")


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


def _pair(row: Mapping[str, Any], fields: Fields) -> tuple[Turn, ...]:
    prompt, completion = row[fields.question], _first_answer(row[fields.answer])
    if _is_chat(prompt):  # the conversational form of prompt and completion
        if not _is_chat(completion):
            completion = [{"role": "assistant", "content": completion}]
        return (*_chat(prompt), *_chat(completion))
    question, answer = as_text(prompt), as_text(completion)
    if fields.further and (about := as_text(row[fields.further])).strip():
        question = f"{question}\n{about}"
    if not (question.strip() and answer.strip()):
        return ()
    system = as_text(row[fields.system]) if fields.system else ""
    turns = (Turn("user", question), Turn("assistant", answer))
    return (Turn("system", system), *turns) if system.strip() else turns


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
