"""ConfigError: raised where a setting or an input cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

SHOWN_CHARACTERS = 200  # of a value in the sentence: a path is shown whole, a long text is not


class ConfigError(ValueError):
    """A setting or an input that cannot be used: which, its value, why, and the way out.

    `str()` is the sentence "<field> is <value>: <reason>. <fix>."; code reads the attributes instead. `field` is the
    setting's place in the run file, such as `lora.rank`; empty where the error is not about a setting, and `reason` is
    then a sentence of its own. `others`: further settings that take part, path -> value. `sets`: settings with which it
    would be right, path -> value, as the way out before `fix`.
    """

    def __init__(
        self,
        reason: str,
        *,
        field: str = "",
        value: object = None,
        fix: str = "",
        others: Mapping[str, object] | None = None,
        sets: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.field, self.value, self.advice = reason, field, value, fix
        self.others, self.sets = dict(others or {}), dict(sets or {})

    @property
    def settings(self) -> dict[str, object]:
        """All settings that take part, path -> value."""
        return {self.field: self.value, **self.others} if self.field else self.others

    @property
    def fix(self) -> str:
        """The way out, without a full stop."""
        return self._way_out(str)

    def _way_out(self, name: Callable[[str], str]) -> str:
        sets = " and ".join(f"set {name(path)} to {written(value)}" for path, value in self.sets.items())
        way = " or ".join(filter(None, (sets, self.advice)))
        return way[:1].upper() + way[1:]

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, name: Callable[[str], str]) -> str:
        """The sentence, where settings have other names than in the run file. `name`: path -> name."""
        settings = " and ".join(f"{_shown(name(path))} is {written(value)}" for path, value in self.settings.items())
        sentences = (f"{settings}: {self.reason}" if settings else self.reason, self._way_out(name))
        return " ".join(s if s.endswith((".", "?")) else f"{s}." for s in sentences if s)


def _shown(path: str) -> str:
    """A setting's place on one line, shortened: the keys of a run file can be any texts."""
    text = " ".join(path.split()) if "\n" in path or "\r" in path else path
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def written(value: object) -> str:
    """A value on one line, as in a run file, shortened."""
    try:
        text = (
            str(value).lower() if isinstance(value, bool) else repr(list(value) if isinstance(value, tuple) else value)
        )
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists in lists
        text = f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def first_line(error: Exception) -> str:
    """What another library says is wrong, on one line, to be quoted in a reason."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
