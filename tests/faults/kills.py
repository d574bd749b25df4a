"""SIGKILL of a real run at a random moment: a real engine on a tiny model, driven, resumed and exported by `cli.py`.

`python -m tests.faults.kills FOLDER SEED COUNT` prints as JSON what happened. It imports PyTorch once and forks every
run, so it has one thread itself. A moment: the n-th time that the run comes into a phase, and a time after that.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage import RunStore
from tests.faults.crashes import check_migrated, old_store
from tests.faults.outcome import Outcome, sentence_of
from unlearn_core.settings.disk import PART

PHASES = ("load", "baseline", "step", "sampling", "checkpoint", "store", "export", "migration")
METHODS = {
    "load": "read_texts",
    "baseline": "measure_baseline",
    "step": "step",
    "sampling": "answers",
    "checkpoint": "save",
}
STEPS, ENTRIES = 6, {"load": 1, "baseline": 1, "step": 6, "sampling": 4, "checkpoint": 4, "store": 7}
AGAIN = 3  # of so many runs one is killed twice
SHARED = struct.Struct("iii")  # phase, whether the run was created, last step that was stored
PATIENCE = 120.0


@dataclass(frozen=True)
class Moment:
    """`entry`: the how many-th time that the phase begins, from 1; `delay`: seconds after that."""

    phase: str
    entry: int
    delay: float


class Watched:
    """What a process tells while it lives: in which phase it is, and what it has stored; it outlives the process."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SHARED.size)
        self.put(PHASES.index("load"), 0, -1)

    def put(self, *values: int) -> None:
        self.memory[:] = SHARED.pack(*values)

    @property
    def values(self) -> tuple[int, int, int]:
        return SHARED.unpack(self.memory[:])  # type: ignore[return-value]

    def enter(self, phase: str) -> int:
        """Returns the phase before."""
        before, created, stored = self.values
        self.put(PHASES.index(phase), created, stored)
        return before

    def leave(self, before: int) -> None:
        self.put(before, *self.values[1:])


def forked(act: Callable[[], int], log: Path) -> int:
    """The process that does it; what it prints goes into `log`."""
    assert threading.active_count() == 1
    child = os.fork()
    if child == 0:
        code = 70
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = act()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def to_its_end(act: Callable[[], int], log: Path) -> None:
    """Lets a process of its own do it. Raises AssertionError where it fails."""
    code = os.waitstatus_to_exitcode(os.waitpid(forked(act, log), 0)[1])
    assert code == 0, f"exit code {code}: {log.read_text(encoding='utf-8')[-400:]}"


def killed(act: Callable[[Callable[[str], None]], int], moment: Moment, log: Path) -> bool:
    """Kills the process at the moment; False where it ended by itself before. `act` is told of phases by calling."""
    reads, writes = os.pipe()
    entries: Counter[str] = Counter()

    def began(phase: str) -> None:
        entries[phase] += 1
        if phase == moment.phase and entries[phase] == moment.entry:
            os.write(writes, b"!")

    child = forked(lambda: act(began), log)
    os.close(writes)
    if os.read(reads, 1):
        time.sleep(moment.delay)
        os.kill(child, signal.SIGKILL)
    os.close(reads)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"exit code {code}: {log.read_text(encoding='utf-8')[-400:]}"
    return code != 0


# ------------------------------------------------------------------------------------------------- the runs


def command(*given: object) -> int:
    """`cli.py` with these arguments."""
    import cli

    sys.argv = ["cli.py", *map(str, given)]
    return cli.main()


def watched_command(watched: Watched, began: Callable[[str], None], *given: object) -> int:
    """The same; `watched` and `began` are told of each phase and of what was stored."""
    from unlearn_core.training.engine import Unlearner

    create, append, owned, pending = RunStore.create_run, RunStore.append_step, RunStore.owned, []

    def created(self: RunStore, **facts: Any) -> str:
        run_id = create(self, **facts)
        watched.put(watched.values[0], 1, -1)
        return run_id

    def appended(self: RunStore, run_id: str, step: int, **more: Any) -> None:
        with during("store"):
            append(self, run_id, step, **more)
        pending.append(step)

    @contextmanager
    def in_a_transaction(self: RunStore, run_id: str, owner: str) -> Iterator[None]:
        """A step is stored when the transaction around it has ended."""
        with owned(self, run_id, owner):
            yield
        while pending:
            watched.put(watched.values[0], 1, pending.pop())

    @contextmanager
    def during(phase: str) -> Iterator[None]:
        before = watched.enter(phase)
        began(phase)
        yield
        watched.leave(before)

    def wrapped(phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def act(*given: Any, **more: Any) -> Any:
            with during(phase):
                return method(*given, **more)

        return act

    RunStore.create_run, RunStore.append_step = created, appended  # type: ignore[method-assign, assignment]
    RunStore.owned = in_a_transaction  # type: ignore[method-assign]
    for phase, name in METHODS.items():
        setattr(Unlearner, name, wrapped(phase, getattr(Unlearner, name)))
    return command(*given)


@dataclass(frozen=True)
class World:
    """A tiny model with its run file, and a run of it that nothing has disturbed."""

    folder: Path
    seconds: dict[str, float]  # that a phase takes, about

    @property
    def file(self) -> Path:
        return self.folder / "run.toml"

    @property
    def home(self) -> Path:
        return self.folder / "undisturbed"


def make_material(folder: Path) -> int:
    """The tiny model, its texts and the run file."""
    from tests.conftest import Tiny, forget_text, retain_text, save_model

    texts = [forget_text(), retain_text()]
    for name, text in zip(("forget.txt", "retain.txt"), texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    save_model(folder / "gptj", "gptj", texts)
    schedule = {"steps": STEPS, "sample_every": 2, "checkpoint_every": 2, "evaluate_every": 3}
    few = {"retain_chunks": 16, "holdout_chunks": 4, "neighbour_chunks": 4}
    (folder / "run.toml").write_text(Tiny(folder).config(schedule=schedule, data=few).to_toml(), encoding="utf-8")
    return 0


def world(folder: Path) -> World:
    """Makes the material, and drives one run to its end while looking at the clock."""
    folder.mkdir(parents=True, exist_ok=True)
    made, home = folder / "made", folder / "undisturbed"
    if not (folder / "seconds.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        to_its_end(lambda: make_material(folder), made)
        began = time.monotonic()
        to_its_end(lambda: command("run", folder / "run.toml", "--home", home, "--through"), made)
        whole = time.monotonic() - began
        began = time.monotonic()
        to_its_end(lambda: command("export", only_run(home), "--home", home, "--to", folder / "export"), made)
        seconds = {"export": time.monotonic() - began, "migration": 0.1, "run": whole}
        (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    return World(folder, json.loads((folder / "seconds.json").read_text(encoding="utf-8")))


def only_run(home: Path) -> str:
    with closing(RunStore(home)) as store:
        (run,) = store.runs()
    return str(run["id"])


def numbers(home: Path) -> dict[str, Any]:
    """Of the only run: its status, numbers, answers and weights, but not how long anything took."""
    with closing(RunStore(home)) as store:
        (run,) = store.runs()
        points, answers = store.points(run["id"]), store.responses(run["id"])
        last = store.checkpoints(run["id"])[-1]
        folder = store.verified_checkpoint(last, whole=bool(last["complete"]))
        weights = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        points = points[points.name != "step_seconds"]
        answers = answers.drop(columns=["seconds"], errors="ignore")
    return {
        "status": run["status"],
        "step": last["step"],
        "points": points.to_csv(index=False, float_format="%r"),
        "answers": answers.to_csv(index=False),
        "weights": weights,
    }


# ---------------------------------------------------------------------------------------------- what must hold


def of_a_run(known: World, folder: Path, phase: str, chance: random.Random) -> str:
    """A run that is killed, now and then again while it is resumed, and goes on; returns the phase it was killed in."""
    home, log, watched = folder / "home", folder / "log", Watched()
    moment = Moment(phase, chance.randint(1, ENTRIES[phase]), chance.random() * known.seconds["run"] / STEPS)
    struck = killed(
        lambda began: watched_command(watched, began, "run", known.file, "--home", home, "--through"), moment, log
    )
    at, created, stored = watched.values
    if not created:
        return "before there was a run"
    acknowledged(home, stored)
    struck = struck and not is_finished(home)  # the run's last transaction may have been written before
    if struck and chance.randrange(AGAIN) == 0:
        again, run_id = Watched(), only_run(home)
        moment = Moment("step", 1, chance.random() * known.seconds["run"] / STEPS)
        struck = killed(
            lambda began: watched_command(again, began, "resume", run_id, "--home", home, "--through"), moment, log
        )
        # Before its first step it has gone back to the last whole state: what was behind that is computed anew.
        acknowledged(home, again.values[2] if again.values[1] else last_whole(home))
        struck = struck and not is_finished(home)
    if struck:
        run_id = only_run(home)
        to_its_end(lambda: command("resume", run_id, "--home", home, "--through"), log)
    mine, its = numbers(home), numbers(known.home)
    for name, value in its.items():
        assert mine[name] == value, f"{name} differ from those of the run that nothing disturbed"
    assert not list((home / "checkpoints").rglob("*.part*")), "leftovers"
    assert "Traceback" not in log.read_text(encoding="utf-8")
    return PHASES[at] if struck or created else "after its end"


def last_whole(home: Path) -> int:
    """The newest step that a run can go on from; -1 where it has none."""
    with closing(RunStore(home)) as store:
        (run,) = store.runs()
        return max((int(row["step"]) for row in store.checkpoints(run["id"]) if row["complete"]), default=-1)


def is_finished(home: Path) -> bool:
    with closing(RunStore(home)) as store:
        (run,) = store.runs()
    return bool(run["status"] == "finished")


def acknowledged(home: Path, step: int) -> None:
    """The run and every step that was stored are there."""
    with closing(RunStore(home)) as store:
        (run,) = store.runs()
        steps = set(store.points(run["id"]).step)
    assert set(range(step + 1)) <= steps, f"step {step} was stored, and is not there"


def of_an_export(known: World, folder: Path, phase: str, chance: random.Random) -> str:
    """An export over an earlier one that is killed: every file is whole, and the next one leaves nothing behind."""
    out, run_id, log = folder / "out", only_run(known.home), folder / "log"
    whole = known.folder / "export"
    if chance.random() < 0.5:
        shutil.copytree(whole, out)

    def act(began: Callable[[str], None]) -> int:
        began(phase)
        return command("export", run_id, "--home", known.home, "--to", out)

    killed(act, Moment(phase, 1, chance.random() * known.seconds["export"]), log)
    expected = content(whole)
    for name, held in content(out).items():
        assert name.startswith(PART) or held == expected[name], f"half of {name} stands in its place"
    to_its_end(lambda: command("export", run_id, "--home", known.home, "--to", out), log)
    assert content(out) == expected, "the next export is not whole, or leaves something behind"
    return phase


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_a_migration(known: World, folder: Path, phase: str, chance: random.Random) -> str:
    """A store of the first version that is opened and killed: nothing is lost."""
    home = folder / "home"
    before = old_store(home)

    def act(began: Callable[[str], None]) -> int:
        began(phase)
        RunStore(home).close()
        return 0

    killed(act, Moment(phase, 1, chance.random() * known.seconds["migration"]), folder / "log")
    check_migrated(home, before)
    return phase


SCENARIOS = {**dict.fromkeys(PHASES, of_a_run), "export": of_an_export, "migration": of_a_migration}


def kill(known: World, folder: Path, seed: int) -> str:
    """One kill: the phase follows from the seed in turn, the moment in it by chance."""
    phase = PHASES[seed % len(PHASES)]
    folder.mkdir(parents=True)
    return SCENARIOS[phase](known, folder, phase, random.Random(seed))


def main(folder: str, seed: str, count: str) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import unlearn_core.training.engine  # noqa: F401 - what it imports is shared by all that are forked

    root = Path(folder)
    known, outcome = world(root / "world"), Outcome()
    gc.freeze()
    for each in range(int(seed), int(seed) + int(count)):
        place = root / f"{each}"
        shutil.rmtree(place, ignore_errors=True)
        try:
            outcome.found[kill(known, place, each)] += 1
            shutil.rmtree(place)
        except Exception as error:
            outcome.broken.append(f"seed {each}: {sentence_of(error)}")
        outcome.times += 1
        print(outcome.to_json(), flush=True)  # the last line counts, also where a signal ends this


if __name__ == "__main__":
    main(*sys.argv[1:])
