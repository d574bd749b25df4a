"""Protocols of training and store that the running threads use; entry points pass implementations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

from unlearn_core.settings.report import Report

Row = dict[str, Any]  # of the store, by column; JSON columns are decoded
Config = Mapping[str, Any]  # a run file's content


# ----------------------------------------------------------------------------------------------------- training


class Verdict(Protocol):
    """Which stopping rule asks for a pause, and why."""

    @property
    def rule(self) -> str: ...
    @property
    def sentence(self) -> str: ...


class Measurement(Protocol):
    """A metric on one set of examples; `examples` by their ids."""

    @property
    def value(self) -> float: ...
    @property
    def examples(self) -> Mapping[str, float]: ...


class StepRecord(Protocol):
    """What one step measured, by the names of the store's points. Not `applied`: the weights did not change.

    `measured`: the metrics among `values`, with a value per example. `changed`: settings that are others than those of
    the step before, as they were (`before`) and are (`set`); empty where all are as they were.
    """

    @property
    def step(self) -> int: ...
    @property
    def values(self) -> Mapping[str, float]: ...
    @property
    def applied(self) -> bool: ...
    @property
    def verdict(self) -> Verdict | None: ...
    @property
    def measured(self) -> Mapping[str, Measurement]: ...
    @property
    def changed(self) -> Mapping[str, Any]: ...


class Response(Protocol):
    """A generated text, its length in tokens and the seconds that it took."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class Answer(Protocol):
    """A response beside the baseline's text, and that text's probability now (geometric mean per token).

    `surprise`: how surprising the response is to the model as given, in standard deviations. `typical_share`: of
    several answers drawn to the same question, the share that the model as given would give; None where none are drawn.
    """

    @property
    def response(self) -> Response: ...
    @property
    def baseline(self) -> str: ...
    @property
    def target_probability(self) -> float: ...
    @property
    def surprise(self) -> float: ...
    @property
    def typical_share(self) -> float | None: ...


class Schedule(Protocol):
    """How long the run is to go on, and after how many steps it is asked and saved."""

    @property
    def steps(self) -> int: ...
    @property
    def sample_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


class Session(Protocol):
    """One opened run: `measure_baseline` or `restore` once, then `step` as often as wanted.

    A ValueError says in a sentence why a prompt, a checkpoint or a setting cannot be used; the session stays usable.
    """

    @property
    def step_number(self) -> int: ...
    @property
    def schedule(self) -> Schedule: ...
    def read_texts(self) -> None: ...
    def measure_baseline(self) -> StepRecord: ...
    def levels(self) -> Mapping[str, float | str]: ...
    def provenance(self) -> dict[str, Any]: ...
    def step(self) -> StepRecord: ...
    def judge(self, values: Mapping[str, float], answers: Sequence[tuple[str, str]] = ()) -> Verdict | None:
        """The stopping rules on one step's values and its answers, as (baseline, now) pairs."""

    def answers(self, prompts: Sequence[str], *, keep: Collection[str] = ()) -> Sequence[Answer]:
        """The answers now. `keep`: those of the prompts whose answers should stay, which are judged more closely."""

    def baseline_answers(self, prompts: Sequence[str]) -> Sequence[Answer]: ...
    def about_a_stand_in(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What is answered before step 1 to the same questions about an invented name; empty where there is none."""

    def answers_at(self, folder: Path, prompts: Sequence[str]) -> Sequence[Answer]:
        """The answers of the adapter saved in `folder`; the session's own weights are as before afterwards."""

    def save(self, folder: Path, whole: bool) -> None:
        """Writes the adapter; with `whole`, everything that the next step depends on as well."""

    def restore(self, folder: Path) -> None: ...
    def changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The run's config with these settings, by their paths, from the next step on; nothing changes yet."""

    def replan(self, config: Config) -> None:
        """What `changed` returned is the run's config from now on."""

    def same_base_model(self, method: str) -> bool:
        """Whether this model, with another adapter, is that of a run with `method` ("": the model without a run)."""


Opener = Callable[[Config, Report], Session]


class Progress(Protocol):
    """How far the reading of texts is. `bytes_total` is 0 where nobody knows; `stage`, `detail`: what comes before."""

    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def seconds_left(self) -> float | None: ...
    @property
    def stage(self) -> str: ...
    @property
    def detail(self) -> str: ...


Inspect = Callable[[Config, Callable[[Progress], None]], dict[str, Any]]


# -------------------------------------------------------------------------------------------------------- store


class Store(Protocol):
    """What worker, drive and preview thread ask of the store; every method raises `Error`, a sentence, where it fails.

    The methods are described where they are implemented, in `storage/`.
    """

    Error: ClassVar[type[Exception]]
    NotHeld: ClassVar[type[Exception]]  # an Error: the run is another's by now
    home: Path

    def run(self, run_id: str) -> Row | None: ...
    def next_queued(self) -> Row | None: ...
    def queued(self) -> list[Row]: ...
    def set_status(
        self,
        run_id: str,
        status: str,
        reason: str | None = None,
        event: str | None = None,
        payload: Mapping[str, Any] | None = None,
    ) -> None: ...
    def set_config(self, run_id: str, config: Config) -> None: ...
    def set_provenance(self, run_id: str, provenance: Mapping[str, Any]) -> None: ...

    def new_owner(self) -> str: ...
    def retire(self, owner: str) -> None: ...
    def held(self, run: Mapping[str, Any]) -> bool: ...
    def claim(self, run_id: str, owner: str, seconds: float = ..., among: Collection[str] | None = None) -> bool: ...
    def owned(self, run_id: str, owner: str) -> AbstractContextManager[None]: ...
    def heartbeat(self, owner: str, seconds: float = ...) -> list[str]: ...
    def release(self, run_id: str, owner: str) -> None: ...
    def interrupt_abandoned(self) -> list[str]: ...
    def refuse_abandoned(self) -> list[int]: ...

    def append_step(
        self,
        run_id: str,
        step: int,
        *,
        points: Mapping[str, float],
        responses: Iterable[Mapping[str, Any]] = (),
        events: Iterable[tuple[str, Mapping[str, Any] | None]] = (),
        checkpoint: Mapping[str, Any] | None = None,
        examples: Mapping[str, Mapping[str, float]] = ...,
        status: str | None = None,
        status_reason: str | None = None,
    ) -> None: ...
    def truncate_after(self, run_id: str, step: int) -> list[str]: ...

    def prompts(self, run_id: str, at_step: int | None = None) -> list[Row]: ...
    def edit_prompt(self, run_id: str, slot: int | None, role: str, text: str, from_step: int) -> int: ...
    def add_probe(self, run_id: str, text: str) -> int: ...
    def responses(self, run_id: str, after_step: int = -1, step: int | None = None) -> Sized: ...
    def add_responses(self, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None: ...

    def events(self, run_id: str | None, after_id: int = 0) -> list[Row]: ...
    def add_event(
        self, run_id: str | None, kind: str, payload: Mapping[str, Any] | None = None, step: int | None = None
    ) -> int: ...

    def commands(self, run_id: str | None = "any", open_only: bool = False, limit: int = 50) -> list[Row]: ...
    def acknowledge(self, command_id: int, owner: str | None = None) -> bool: ...
    def finish(
        self, command_id: int, error: str | None = None, code: str | None = None, step: int | None = None
    ) -> None: ...

    def checkpoints(self, run_id: str) -> list[Row]: ...
    def nearest_checkpoint(self, run_id: str, step: int) -> Row | None: ...
    def has_checkpoint(self, row: Row) -> bool: ...
    def verified_checkpoint(self, row: Row, whole: bool = False) -> Path: ...
    def write_checkpoint(
        self, run_id: str, step: int, whole: bool, write: Callable[[Path], None], owner: str
    ) -> Row: ...
    def place_checkpoint(self, row: Row, owner: str) -> None: ...
    def discard_checkpoint(self, row: Row, owner: str) -> None: ...
    def remove_checkpoints(self, run_id: str, paths: Iterable[str]) -> None: ...
    def tidy_checkpoints(self, run_id: str, after_a_driver: bool = False) -> None: ...
    def shrink_checkpoint(self, checkpoint_id: int) -> None: ...


# ------------------------------------------------------------------------------------------------------- worker


class Host(Protocol):
    """What a drive needs of the worker whose thread it runs in.

    `failure`: why the end of a run cannot be written to the store; None while it can.
    """

    store: Store
    opener: Opener
    owner: str
    failure: str | None

    @property
    def stopping(self) -> bool: ...
    def rest(self, seconds: float | None = None) -> bool: ...
    def waiting(self) -> frozenset[str]: ...
    def serve_others(self) -> None: ...
