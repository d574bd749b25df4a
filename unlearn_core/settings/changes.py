"""Changes of a run's settings in mid-run: which can change, and what the settings are at a step. Imports no torch.

A change names the first step that is taken with it, so that a run file with it gives the numbers of the run in which
somebody made it by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from unlearn_core.settings.errors import ConfigError

# Settings, and sections as a whole, that nothing is built of before the first step.
CHANGEABLE = (
    "optimizer.learning_rate", "optimizer.max_gradient_norm", "method.retain_weight", "method.neighbour_weight",
    "guard_rail", "guard", "schedule.steps", "schedule.sample_every", "schedule.evaluate_every",
    "schedule.checkpoint_every",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Settings that hold from a step on. `set`: by their paths, such as `optimizer.learning_rate`."""

    step: int
    set: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As in the run file."""
        return {"step": self.step, "set": dict(self.set)}


def read_changes(content: Any) -> tuple[Change, ...]:
    """The changes of a run file, by their steps. Raises ConfigError for what is none, or cannot change."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise ConfigError(
            "it must be a list", field="changes", value=content, fix="Write [[changes]] with step and set"
        )
    changes = [_read(entry, f"changes[{index}]") for index, entry in enumerate(content)]
    return tuple(sorted(changes, key=lambda change: change.step))


def _read(entry: Any, path: str) -> Change:
    fix = 'Write [[changes]] with step = 48 and set = { "optimizer.learning_rate" = 1e-4 }'
    if not isinstance(entry, Mapping) or set(entry) != {"step", "set"}:
        raise ConfigError("it must be a table with step and set", field=path, value=entry, fix=fix)
    step, settings = entry["step"], entry["set"]
    if type(step) is not int or not 1 <= step < 2**31:
        raise ConfigError("it must be the number of a step, from 1", field=f"{path}.step", value=step, fix=fix)
    if not isinstance(settings, Mapping) or not settings:
        raise ConfigError("it must be a table of settings", field=f"{path}.set", value=settings, fix=fix)
    return Change(step, check_changeable(flat(settings)))


def check_changeable(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings. Raises ConfigError for the first that a run cannot change once it has begun."""
    for name, value in settings.items():
        if name not in CHANGEABLE and name.partition(".")[0] not in CHANGEABLE:
            near = get_close_matches(name, CHANGEABLE, 1)
            known = f"these can: {', '.join(name if '.' in name else f'{name}.*' for name in CHANGEABLE)}"
            fix = f"Did you mean {near[0]}? Else branch the run, or begin another" if near else "Begin another run"
            raise ConfigError(f"it cannot change while a run goes on; {known}", field=name, value=value, fix=fix)
    return settings


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as paths: {"optimizer": {"learning_rate": 1}} -> {"optimizer.learning_rate": 1}."""
    paths: dict[str, Any] = {}
    for name, value in settings.items():
        paths |= (
            {f"{name}.{below}": each for below, each in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return paths


def nested(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Paths as sections."""
    sections: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of two configs (as `RunConfig.to_dict`) that differ: as they were, and as they are.

    Of another guard rail all settings, since the two have different ones.
    """
    sections = sorted({name.partition(".")[0] for name in CHANGEABLE})
    old, new = (flat({name: config[name] for name in sections}) for config in (before, after))
    whole = "guard_rail." if old["guard_rail.kind"] != new["guard_rail.kind"] else None
    changed = [n for n in dict.fromkeys((*new, *old)) if old.get(n) != new.get(n) or (whole and n.startswith(whole))]
    return {n: old[n] for n in changed if n in old}, {n: new[n] for n in changed if n in new}
