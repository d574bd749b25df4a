"""Multiple choice: the text of the right answer where a row has it as a position, a letter, a mark or scores."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from string import ascii_lowercase
from typing import Any

LISTS = (
    *("choices", "options", "endings", "candidates", "alternatives", "answer_choices", "multiple_choice_targets"),
    *("mc1_targets", "mc2_targets", "target_scores", "answers"),
)
KEYS = (  # fields that may say which choice is right, a text of it included
    *("answer", "answerkey", "answer_key", "answer_idx", "answer_index", "answer_id", "answer_letter", "answer_label"),
    *("correct_answer", "correct_option", "correct_choice", "correct_index", "correct_idx", "correct_answer_index"),
    *("correct_answer_idx", "correct", "gold", "gold_index", "gold_idx", "gold_label", "label", "labels", "target"),
    *("cop", "solution", "key", "multiple_choice_scores", "answers", "output", "response", "completion"),
)
NOT_A_TEXT = frozenset(KEYS) - {
    *("answer", "correct_answer", "correct", "target", "solution", "answers", "output", "response", "completion"),
}
QUESTIONS = (  # only beside choices
    *("question_stem", "stem", "ctx", "goal", "premise", "sentence", "problem", "startphrase", "context", "text"),
)
COLUMN = re.compile(r"(op|opt|option|choice|answer|sol|ending|candidate|alternative|)[ _-]?([a-j]|\d)")
TEXTS, MARKS = ("text", "choices", "choice", "value", "content", "option", "body"), ("label", "labels", "key", "id")
RIGHT = ("is_correct", "correct", "is_answer", "iscorrect")
LETTER = re.compile(r"\(?([A-Za-z])[).:]?")
SEVERAL = re.compile(r"\(?([A-J])\)?(?:\s*(?:,|;|/|&|and|or)?\s*\(?[A-J]\)?)+")
LETTERED = re.compile(r"\(?([A-J])\)?[).:]?\s+(.+)", re.DOTALL)
LONGEST_LITERAL = 1 << 16  # characters of choices that a table has as text
UNDECIDED = 1_000  # rows that are looked at to tell whether positions begin at 0 or 1


@dataclass(frozen=True)
class Choices:
    """The choices of one row. `marks`: their labels, where the row has some; `scores`: which are right, likewise."""

    texts: tuple[str, ...]
    marks: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    numeric: bool = False  # the row has them as numbers


def columns_of(names: Mapping[str, str]) -> tuple[str, ...]:
    """The fields that hold a choice each (A to D, option1 to option4, opa to opd), in their order.

    `names`: normalised name -> name. Empty where there are not at least two that belong together.
    """
    families: dict[str, dict[str, str]] = {}
    for normalised, name in names.items():
        if found := COLUMN.fullmatch(normalised):
            families.setdefault(found[1], {})[found[2]] = name
    for prefix, members in families.items():
        for signs in (ascii_lowercase, "0123456789", "123456789"):
            ordered = tuple(members[sign] for sign in signs[: len(members)] if sign in members)
            if len(ordered) == len(members) > 1 and (prefix or signs is ascii_lowercase):
                return ordered
    return ()


def named_in(row: Mapping[str, Any], names: Mapping[str, str], key: str = "") -> tuple[tuple[str, ...], str]:
    """(the fields of the choices, the field of what is right) of a row; two times nothing where it has no choices.

    `names`: normalised name -> name; `key`: the field of what is right, where a setting says it. That is empty where
    the choices themselves say which is right.
    """
    for name in LISTS:
        if name not in names or names[name] == key:
            continue
        fields = (names[name],)
        choices = choices_of(row, fields)
        if choices is None and row[names[name]] is not None:
            continue
        known = (each for each in KEYS if names.get(each, names[name]) != names[name])
        if name == "answers":  # several right answers, unless another field says which is right
            known = (each for each in known if each in NOT_A_TEXT)
        if found := key or names.get(next(known, ""), ""):
            return fields, found
        if choices is not None and choices.scores:
            return fields, ""
    columns = columns_of(names)
    found = key or next((names[each] for each in KEYS if each in names and names[each] not in columns), "")
    return (columns, found) if columns and found and choices_of(row, columns) is not None else ((), "")


def choices_of(row: Mapping[str, Any], fields: Sequence[str]) -> Choices | None:
    """The choices in one field of a row, or in several that hold one each. None where they are no choices."""
    if len(fields) > 1:
        texts = tuple(_shown(row[name]) for name in fields)
        while texts and not texts[-1].strip():  # a question with fewer choices than there are columns
            texts = texts[:-1]
        return Choices(texts) if len(texts) > 1 else None
    return _parsed(row[fields[0]])


def _parsed(value: Any) -> Choices | None:
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if not _is_list(value) or len(value) < 2:
        return None
    if all(isinstance(item, Mapping) for item in value):
        return _of_mappings(value)
    texts = tuple(map(_shown, value))
    return Choices(texts, numeric=all(map(_is_number, value))) if all(texts) else None


def _of_mapping(value: Mapping[str, Any]) -> Choices | None:
    """Lists of texts and labels side by side, or a text (or a score) by its label."""
    listed = next((value[name] for name in TEXTS if _is_list(value.get(name))), None)
    if listed is not None:
        marks = next((value[name] for name in MARKS if _is_list(value.get(name))), ())
        texts = tuple(map(_shown, listed))
        if len(texts) < 2 or not all(texts):
            return None
        if len(marks) == len(texts) and _one_hot(marks):
            return Choices(texts, scores=tuple(map(float, marks)))
        return Choices(texts, tuple(map(_shown, marks)) if len(marks) == len(texts) else ())
    given = {str(key): each for key, each in value.items() if each is not None}
    if len(given) < 2:
        return None
    if all(_is_number(each) for each in given.values()) and any(len(key) > 1 for key in given):
        return Choices(tuple(given), scores=tuple(map(float, given.values())))
    texts = tuple(map(_shown, given.values()))
    return Choices(texts, tuple(given)) if all(texts) else None


def _of_mappings(value: Sequence[Mapping[str, Any]]) -> Choices | None:
    """A mapping for each choice: its text, perhaps its label, perhaps whether it is right."""
    texts = tuple(next((_shown(item[name]) for name in TEXTS if name in item), "") for item in value)
    if not all(texts):
        return None
    marks = tuple(next((_shown(item[name]) for name in MARKS if name in item), "") for item in value)
    right = tuple(next((float(bool(item[name])) for name in RIGHT if name in item), 0.0) for item in value)
    return Choices(texts, marks if all(marks) else (), right if any(right) else ())


def right_one(choices: Choices, key: Any, first: int = 0) -> str | None:
    """The text of the right choice. `key`: what the row says is right, `first`: the position of the first choice.

    A key that is a text of its own is the answer itself. None where it names no choice.
    """
    if choices.scores and any(choices.scores):
        return choices.texts[max(range(len(choices.texts)), key=choices.scores.__getitem__)]
    if _is_list(key):
        if len(key) == len(choices.texts) and _one_hot(key):
            return choices.texts[max(range(len(key)), key=lambda index: float(key[index]))]
        return right_one(choices, key[0], first) if key else None
    if isinstance(key, Mapping):
        return right_one(choices, next((key[name] for name in (*MARKS, *TEXTS) if name in key), None), first)
    text = _shown(key).strip()
    if not text or isinstance(key, bool):
        return None
    position = position_of(key)
    there = position is not None and 0 <= position - first < len(choices.texts)
    if position is not None and there and _is_number(key) and not (choices.numeric or choices.marks):
        return choices.texts[position - first]  # a number beside texts, whatever numbers the texts hold
    for candidates in (choices.texts, choices.marks):
        for candidate, choice in zip(candidates, choices.texts, strict=False):
            if candidate.strip().casefold() == text.casefold():
                return choice
    if position is not None:
        return choices.texts[position - first] if there else None
    return _lettered(choices, text)


def _lettered(choices: Choices, text: str) -> str | None:
    """The choice that a letter names, alone or in front of its text; of several letters the first."""
    letters = re.findall(r"[A-J]", text)
    if (letter := LETTER.fullmatch(text)) or (SEVERAL.fullmatch(text) and letters == sorted({*letters})):
        return _by_letter(choices, letter[1] if letter else letters[0])
    lettered = LETTERED.fullmatch(text)
    if lettered and lettered[2].strip() == (_by_letter(choices, lettered[1]) or "").strip():
        return lettered[2].strip()
    return text


def position_of(key: Any) -> int | None:
    """A whole number, also one that a table has as text or with a decimal point; None for anything else."""
    if isinstance(key, bool):
        return None
    if _is_number(key):
        return int(key) if key == int(key) else None
    found = re.fullmatch(r"\s*(-?\d{1,3})(?:\.0*)?\s*", key) if isinstance(key, str) else None
    return int(found[1]) if found else None


def first_position(rows: Iterable[tuple[Choices, Any]]) -> int | None:
    """Whether positions begin at 0 or at 1: a 0 shows one, the number of choices the other. None where neither does."""
    highest = False
    for choices, key in rows:
        named = key[0] if _is_list(key) and len(key) == 1 else key
        position, by_text = position_of(named), choices.numeric or not _is_number(named)
        if choices.marks or choices.scores or position is None or (by_text and _shown(named) in choices.texts):
            continue
        if position == 0:
            return 0
        highest = highest or position == len(choices.texts)
    return 1 if highest else None


def _by_letter(choices: Choices, letter: str) -> str | None:
    marks = [mark.strip(" ().:").casefold() for mark in choices.marks] or [*ascii_lowercase[: len(choices.texts)]]
    return choices.texts[marks.index(letter.casefold())] if letter.casefold() in marks else None


def _literal(text: str) -> Any:
    """A list or a mapping that a table has as text, in JSON or as Python writes it; None for any other text."""
    if not text.lstrip().startswith(("[", "{")) or len(text) > LONGEST_LITERAL:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _one_hot(values: Sequence[Any]) -> bool:
    """Whether the values mark some as right: 0 and 1 (or false and true), with at least one of each."""
    return len(values) > 1 and all(isinstance(v, Number) for v in values) and {*map(float, values)} == {0.0, 1.0}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _shown(value: Any) -> str:
    """A text, or a number as text. Of anything else nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value)
    return str(value) if isinstance(value, Number) else ""
