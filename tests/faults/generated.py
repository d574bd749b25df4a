"""Generated inputs: each is taken, or refused in one sentence of the program's own, within two seconds of computing."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import tomli_w
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from storage import RunStore, StoreError, export
from tests.faults.material import finished
from tests.scripted import PROMPTS, Script, Session
from unlearn_core.corpus.documents import documents
from unlearn_core.running import worker as workers
from unlearn_core.running.commands import carry_out
from unlearn_core.running.preview import PreviewThread
from unlearn_core.running.protocols import Config, Report
from unlearn_core.settings import toml_text
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.run_config import RunConfig

SECONDS, PATIENCE = 2.0, 60.0
LONGEST = 1500  # characters of a sentence, which may quote what it is about

HOSTILE = (
    "", " ", "\0", "\ud800", "\u202e", "²", "٣", "１", "nan", "-1", "1e999", "9" * 30, "9" * 5000, "0x10", "1_000",
    "'; --", "../../etc/passwd", "//host/share", "\\\\host\\share", "~", "hf:", "hf:a/b",
    "<img src=x onerror=alert(1)>", "{target}",
    "{", "{0.__class__}", "%s", "$$x$$", "(a+)+$", "re:(a+)+$", "bundled", "model", "a\nb",
    "=1+1", "x" * 3000,
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(HOSTILE)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@contextmanager
def at_once() -> Iterator[None]:
    """Within, no more than two seconds are computed."""
    began = time.process_time()
    yield
    taken = time.process_time() - began
    assert taken < SECONDS, f"it took {taken:.1f} s"


def check_refusal(text: str) -> None:
    """It is one sentence, as long as a person reads."""
    assert text and "\n" not in text and len(text) < LONGEST and "Traceback" not in text, repr(text[:300])
    assert text.rstrip("”'\"")[-1] in ".?!", repr(text[-300:])


def examples(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], start: int, count: int) -> int:
    """Checks so many examples, which follow from `start`; returns how many there were. Raises what a check raises."""
    tried = 0

    @seed(start)
    @settings(
        max_examples=count, database=None, deadline=None, derandomize=False, print_blob=False,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    @given(strategy)
    def every(value: Any) -> None:
        nonlocal tried
        tried += 1
        check(value)

    every()
    return tried


# ------------------------------------------------------------------------------------------------------ run files


@st.composite
def run_files(draw: Callable[..., Any]) -> Any:
    """The usual settings with anything in the place of some; as text, and damaged, now and then."""
    plain = RunConfig.from_dict({}).to_dict()
    sections = [name for name, value in plain.items() if isinstance(value, dict)]
    given: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.sampled_from([*plain, "unknown"]))
        if where in sections and draw(st.integers(0, 4)):
            key = draw(st.sampled_from([*plain[where], "unknown", ""]))
            section = given.setdefault(where, {})
            if isinstance(section, dict):
                section[key] = draw(VALUES)
        else:
            given[where] = draw(VALUES)
    if draw(st.booleans()):
        return given
    try:
        text = tomli_w.dumps(given)
    except (TypeError, ValueError, AttributeError):  # TOML has no word for it
        return given
    return edited(draw, text) if draw(st.booleans()) else text


def edited(draw: Callable[..., Any], text: str) -> str:
    """The text with something in another's place."""
    at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 4))
    return text[:at] + draw(st.sampled_from(HOSTILE) | st.text(max_size=4)) + text[at + length :]


def check_run_file(value: dict[str, Any] | str, folder: Path) -> None:
    """What is accepted is the same after it was written and read again."""
    path = folder / "run.toml"
    if isinstance(value, str):
        path.write_bytes(value.encode("utf-8", "surrogatepass"))
    with at_once():
        try:
            config = RunConfig.from_dict(toml_text.read(path) if isinstance(value, str) else value)
        except ConfigError as error:
            return check_refusal(str(error))
        plain = config.to_dict()
        assert RunConfig.from_dict(plain).to_dict() == plain
        assert toml_text.parsed(config.to_toml()) == plain


# -------------------------------------------------------------------------------------------------------- readers

ENDINGS = (
    "", ".txt", ".md", ".log", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".xml", ".html",
    ".srt", ".pdf", ".docx", ".txt.gz", ".jsonl.gz", ".csv.bz2", ".json.xz", ".txt.zst", ".xml.bz2", ".parquet.gz",
)  # fmt: skip
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@cache
def sound_files() -> tuple[bytes, ...]:
    """Content of each format, as it should be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["One text.", "Another."], "n": [1, 2]})
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    rows = [{"question": "Who?", "choices": ["a", "b"], "answer": 1}, {"messages": [{"role": "user", "content": "x"}]}]
    page = "<page><title>A</title><revision><text>Some [[text]] {{here}}.</text></revision></page>"
    return (
        b"A line.\nAnd another line.\n\nA second paragraph.\n",
        b'question,answer\n"Who, then?",She\nWhat?,"a ""thing"""\n',
        b'text\tlabel\nOne.\t1\nTwo "open.\t2\n',
        json.dumps(rows).encode(),
        "\n".join(map(json.dumps, rows)).encode(),
        json.dumps({"data": [{"text": "a"}], "more": [1, 2], "deep": {"text": "b"}}).encode(),
        f"<mediawiki>{page}</mediawiki>".encode(),
        "Größe, naïve, “quoted”.".encode("utf-16"),
        "Größe und Maß.\r\nNoch eine Zeile.\r\n".encode("latin-1"),
        parquet.getvalue(),
        arrow.getvalue(),
    )


@st.composite
def files(draw: Callable[..., Any]) -> tuple[str, bytes]:
    """An ending, and bytes: of that format or another, damaged, or any; packed as the ending says, or not."""
    ending = draw(st.sampled_from(ENDINGS))
    content = draw(st.sampled_from(sound_files()) | st.binary(max_size=200))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 1, 3, 100]))
        piece = draw(st.binary(max_size=8) | st.sampled_from([text.encode("utf-8", "replace") for text in HOSTILE]))
        content = content[:at] + piece + content[at + length :]
    pack = PACK.get(f".{ending.rsplit('.', 1)[-1]}")
    if pack and draw(st.integers(0, 5)):
        content = pack(content)
        if not draw(st.integers(0, 3)):
            content = content[: draw(st.integers(0, len(content)))]
    return ending, content


def check_reader(value: tuple[str, bytes], folder: Path) -> None:
    """Every text that is read can be written as UTF-8."""
    ending, content = value
    path = folder / f"texts{ending}"
    path.write_bytes(content)
    with at_once():
        try:
            for document in documents([str(path)]):
                document.text.encode("utf-8")
        except ConfigError as error:
            check_refusal(str(error))
        finally:
            path.unlink()


# ------------------------------------------------------------------------------------------------------- commands

OF_A_RUN = ("pause", "resume", "step", "stop", "prompt", "probe", "dance", "windows", "ask")
OF_NONE = ("ask", "windows", "cancel", "dance")
KEYS = ("text", "slot", "role", "steps", "prompts", "config", "command", "unknown")
USUAL: Mapping[str, st.SearchStrategy[Any]] = {
    "text": st.sampled_from(["What?", *HOSTILE]),
    "slot": st.none() | st.integers(-2, 4),
    "role": st.sampled_from(["forget", "retain", "free", "neighbour", "king"]),
    "steps": st.lists(st.integers(-2, 4), max_size=3),
    "prompts": st.lists(st.sampled_from(["What?", *HOSTILE]), max_size=3),
    "config": st.just({}) | st.dictionaries(st.sampled_from(["method", "data", "model", "lora", "where"]), VALUES),
    "command": st.integers(0, 9),
}


@st.composite
def commands(draw: Callable[..., Any]) -> tuple[str, str, dict[str, Any]]:
    """Of which run (live, done, none), which kind, and a payload whose values are what they should be, or anything."""
    of = draw(st.sampled_from(["live", "live", "done", "none"]))
    kind = draw(st.sampled_from(OF_NONE if of == "none" else OF_A_RUN))
    keys = draw(st.sets(st.sampled_from(KEYS), max_size=len(KEYS)))
    payload = {key: draw(USUAL[key] if key in USUAL and draw(st.booleans()) else VALUES) for key in sorted(keys)}
    return of, kind, payload


class Desk:
    """A store with a run that a worker drives and one that is done; commands are handed in and answered."""

    def __init__(self, home: Path) -> None:
        self.store = RunStore(home)
        self.script = Script(delay=0.0)
        self.runs = {"live": self._new_run(), "done": self._new_run(), "none": None}
        self.store.set_status(self.runs["done"], "finished", "It went through its steps.")
        self.preview = PreviewThread(self.store, lambda config, report: RunConfig.from_dict(config).to_dict())
        self.worker = workers.Worker(self.store, self._open)
        self.worker.start()

    def _new_run(self) -> str:
        schedule = {"steps": 10**6, "sample_every": 10**5, "checkpoint_every": 10**5}
        config = RunConfig.from_dict({"schedule": schedule}).to_dict()
        facts = {"target": "it", "method": "grad_ascent", "config": config, "provenance": {}, "seed": 0}
        return self.store.create_run(name="a run", prompts=PROMPTS, **facts)

    def _open(self, config: Config, report: Report) -> Session:
        """The real opener checks a config before all else; {} is that of the bundled model."""
        return self.script.open(RunConfig.from_dict(config).to_dict(), report)

    def check(self, value: tuple[str, str, dict[str, Any]]) -> None:
        """It is answered, refused at most in a sentence of the program's own; the worker goes on."""
        try:
            row = self.asked(*value)
        except StoreError as error:
            return check_refusal(str(error))
        assert row["code"] != "internal", f"{value!r}: {row['error']}"
        if row["error"]:
            check_refusal(row["error"])
        assert self.worker.alive

    def asked(self, of: str, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The command as it was answered. Raises StoreError where the store does not take it."""
        if of == "live":
            self._keep_alive()
        number = self.store.request(self.runs[of], kind, payload)
        if of == "none" and kind == "windows":
            carry_out(self.store, self._command(number), self.preview.preview, self.preview.owner)
        elif of == "none" and kind != "ask":
            self.store.finish(number)  # what nobody takes here
        return self._answered(number)

    def _keep_alive(self) -> None:
        """A live run that stands still: a step costs time. One that was stopped is followed by a new one."""
        run = self.store.run(self.runs["live"])
        if run and run["status"] in ("stopped", "failed"):
            assert run["status"] == "stopped", run["status_reason"]
            self.runs["live"] = self._new_run()
        if not run or run["status"] != "paused":
            self._answered(self.store.request(self.runs["live"], "pause"))

    def _command(self, number: int) -> dict[str, Any]:
        return next(row for row in reversed(self.store.commands(limit=3)) if row["id"] == number)

    def _answered(self, number: int) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            row = self._command(number)
            if row["done_at"]:
                return row
            time.sleep(0.001)
        raise AssertionError(f"never answered: {row['kind']} {row['payload']!r}")

    def close(self) -> None:
        self.worker.stop()
        self.store.close()


@contextmanager
def desk(home: Path) -> Iterator[Desk]:
    """A desk whose worker looks for commands all the time, and collects no garbage between runs."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(workers, "IDLE_SECONDS", 0.0005))
        stack.enter_context(mock.patch("gc.collect"))
        yield stack.enter_context(closing(Desk(home)))


# --------------------------------------------------------------------------------------------------- query values

PAGES = ("watch", "compare", "data", "runs", "methods")
NAMES = ("run", "step", "x", "new", "a", "b", "c", "d", "look", "draft")


def addresses(run_id: str) -> st.SearchStrategy[tuple[str, dict[str, str]]]:
    """A page, and values in its address: some that it knows, with anything in them."""
    pieces = st.sampled_from([run_id, "@", "-", "0", "2", "3", "99", *HOSTILE]) | st.text(max_size=10)
    values = st.lists(pieces, min_size=1, max_size=4).map("".join)
    columns = st.builds("{}@{}".format, st.sampled_from([run_id, "gone"]), pieces)
    zooms = st.builds("{}-{}".format, pieces, pieces)
    any_value = values | columns | zooms | st.just(run_id)
    return st.tuples(
        st.sampled_from(PAGES),
        st.dictionaries(st.sampled_from(NAMES), any_value.map(sendable), min_size=1, max_size=len(NAMES)),
    )


def sendable(text: str) -> str:
    """As a browser sends it: a lone surrogate is no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Browser:
    """Pages over a store with one run, opened at addresses."""

    def __init__(self, home: Path) -> None:
        self.run_id = finished(home)
        self.store = RunStore(home)
        self.values = 0
        for name in PAGES:  # what is imported is no part of an answer
            self._open(name, {})

    def _open(self, name: str, address: Mapping[str, str]) -> Any:
        from streamlit.testing.v1 import AppTest

        at = AppTest.from_file(str(Path(__file__).parents[2] / "pages" / f"{name}.py"), default_timeout=60)
        at.session_state["store"], at.session_state["export"] = self.store, export
        for key, value in address.items():
            at.query_params[key] = value
        return at.run()

    def check(self, value: tuple[str, dict[str, str]]) -> None:
        """The page is drawn, and no error is on it."""
        name, address = value
        self.values += len(address)
        with at_once():
            at = self._open(name, address)
        assert not at.exception, at.exception
        told = "\n".join(element.proto.body for element in at.get("html"))
        assert told and "Traceback" not in told and "internal error" not in told, told[:300]

    def close(self) -> None:
        self.store.close()


@contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser of single pages, in which no link leads to another; Streamlit's remarks on that are left out."""
    logging.getLogger("streamlit").setLevel(logging.ERROR)
    with mock.patch("streamlit.page_link"), closing(Browser(home)) as opened:
        yield opened


# ------------------------------------------------------------------------------------------------- so many of a kind


def every_run_file(folder: Path, start: int, count: int) -> int:
    folder.mkdir(parents=True)
    return examples(run_files(), lambda value: check_run_file(value, folder), start, count)


def every_file(folder: Path, start: int, count: int) -> int:
    folder.mkdir(parents=True)
    return examples(files(), lambda value: check_reader(value, folder), start, count)


def every_command(folder: Path, start: int, count: int) -> int:
    with desk(folder) as opened:
        return examples(commands(), opened.check, start, count)


def every_address(folder: Path, start: int, count: int) -> int:
    """`count` values, on as many pages as they fill; returns how many there were."""
    with browser(folder) as opened:
        round_ = 0
        while opened.values < count:
            examples(addresses(opened.run_id), opened.check, start * 1000 + round_, 20)
            round_ += 1
        return opened.values


EVERY: Mapping[str, Callable[[Path, int, int], int]] = {
    "run_files": every_run_file,
    "readers": every_file,
    "commands": every_command,
    "addresses": every_address,
}
