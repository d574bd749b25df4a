"""The kinds of faults of the long form: how often each, in which pieces, and what must hold."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import clocks, damage, full_disk, generated, locks, one_home, writes
from tests.faults.material import finished
from tests.faults.outcome import ROOT, Outcome, in_a_process, sentence_of
from tests.faults.two_drivers import lose_at_write, take_over

HERE = Path(__file__).parent
Tried = Callable[[Path, int, int], Outcome]  # in an empty folder, from this seed on, so many times


@dataclass(frozen=True)
class Kind:
    """`times` of the long form, in pieces of `piece`; `file`: the module whose change makes earlier results void."""

    name: str
    label: str
    holds: str
    times: int
    piece: int
    tried: Tried
    file: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (HERE / f"{self.file}.py",)


def each(act: Callable[[Path, int], str]) -> Tried:
    """Of a scenario for one seed, which returns what was met."""

    def tried(folder: Path, seed: int, count: int) -> Outcome:
        outcome = Outcome()
        for number in range(seed, seed + count):
            place = folder / f"{number}"
            try:
                if met := act(place, number):
                    outcome.found[met] += 1
            except Exception as error:
                outcome.broken.append(f"seed {number}: {sentence_of(error)}")
            outcome.times += 1
            shutil.rmtree(place, ignore_errors=True)
        return outcome

    return tried


def kills(folder: Path, seed: int, count: int) -> Outcome:
    return in_a_process("kills", folder, seed, count)


def file_operations(folder: Path, seed: int, count: int) -> Outcome:
    """Every moment of both scenarios, once."""
    outcome = Outcome()
    for scenario in ("saving", "migrating"):
        command = [sys.executable, "-m", "tests.faults.crashes", scenario, str(folder / scenario), "1"]
        (folder / scenario).mkdir()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        moments = int(done.stdout) if done.returncode == 0 else 1
        outcome.times += moments
        outcome.found[scenario] += moments
        if done.returncode:
            outcome.broken.append(f"{scenario}: {done.stderr.strip().splitlines()[-1]}")
    return outcome


def disk(folder: Path, seed: int, count: int) -> Outcome:
    """Every kind of write on a full disk, and homes on a read-only one."""
    command = [sys.executable, "-m", "tests.faults.full_disk", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == full_disk.NOT_ALLOWED:
        return Outcome(1, broken=["This process may mount nothing, so no disk can be made full."])
    if done.returncode:
        return Outcome(1, broken=[done.stderr.strip().splitlines()[-1]])
    outcome, told = Outcome(), json.loads(done.stdout.splitlines()[-1])
    for name, sentence in told.items():
        outcome.times += 1
        outcome.found[name.replace("_", " ")] += 1
        says = any(kind.__name__ == name for kind in writes.SAYS)
        if "Traceback" in sentence or (says and not ("full" in sentence or "No space left" in sentence)):
            outcome.broken.append(f"{name}: {' '.join(str(sentence).split())[-200:]}")
    return outcome


def lock(place: Path, seed: int) -> str:
    kind = locks.KINDS[seed % len(locks.KINDS)]
    locks.waited_for(place / "waited", kind, 0.6)
    locks.given_up(place / "given up", kind)
    locks.run_in_the_meantime(place / "meantime", 0.5)
    return kind


def store_damage(place: Path, seed: int) -> str:
    finished(place / "good", steps=6)
    return "noticed" if damage.of_a_store(place / "good", place / "home", seed) else "not noticed"


def checkpoint_damage(place: Path, seed: int) -> str:
    run_id = finished(place / "good", steps=6)
    damage.of_a_checkpoint(place / "good", place / "home", run_id, seed)
    return ""


def stopped(folder: Path, seed: int, count: int) -> Outcome:
    """Each phase once in a piece: a driver stands still, another finishes its run, the first goes on."""
    phases = take_over(folder / "home")
    outcome = Outcome(len(phases))
    outcome.found.update(phases.keys())
    return outcome


def lost(folder: Path, seed: int, count: int) -> Outcome:
    """Before each write of a run that is steered in every way, of a new one and of one that is resumed."""
    outcome = Outcome()
    for resume in (False, True):
        at = 1
        while lose_at_write(folder, at, resume):
            at += 1
        outcome.times += at - 1
        outcome.found["resumed" if resume else "new"] += at - 1
    return outcome


def clock(place: Path, seed: int) -> str:
    place.mkdir(parents=True)
    clocks.jumping(place, 30.0 * (1 + seed % 4))
    return f"by {30 * (1 + seed % 4)} s"


def home(folder: Path, seed: int, count: int) -> Outcome:
    outcome = Outcome()
    for number in range(seed, seed + count):
        try:
            outcome.found += one_home.steered(folder / f"{number}", number)
        except Exception as error:
            outcome.broken.append(f"seed {number}: {sentence_of(error)}")
        outcome.times += 1
    return outcome


def soak(folder: Path, seed: int, count: int) -> Outcome:
    return in_a_process("soak", folder / "home", count)


def inputs(kind: str) -> Tried:
    """Generated inputs of a kind, as many as were generated until one did not hold."""

    def tried(folder: Path, seed: int, count: int) -> Outcome:
        outcome, met = Outcome(), [0]
        try:
            met[0] = generated.EVERY[kind](folder / "home", seed, count)
        except Exception as error:
            outcome.broken.append(f"seed {seed}: {sentence_of(error)}")
            met[0] = 1
        outcome.times = met[0]
        return outcome

    return tried


SENTENCE = "taken, or refused in one sentence, within 2 s of computing"
KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill", "SIGKILL of a run at a random moment",
             "what was stored is there; the resumed run is equal bit for bit", 200, 8, kills, "kills"),
        Kind("files", "SIGKILL at every file operation", "checkpoints, exports and stores are whole", 1, 1,
             file_operations, "crashes"),
        Kind("disk", "a full disk at every kind of write", "one sentence; it goes on when there is room", 1, 1, disk,
             "writes"),
        Kind("lock", "a store that another program has locked", "it is waited for, or given up in one sentence", 40, 4,
             each(lock), "locks"),
        Kind("store", "a store with damaged bits", "one sentence; nothing is overwritten", 300, 50, each(store_damage),
             "damage"),
        Kind("checkpoint", "a checkpoint with damaged or swapped files", "it is not used", 400, 100,
             each(checkpoint_damage), "damage"),
        Kind("stop", "SIGSTOP in a phase, and a takeover", "the second driver's history stays as it is", 10, 1, stopped,
             "two_drivers"),
        Kind("lost", "a run that is lost before a write", "that write and all later ones are refused", 1, 1, lost,
             "two_drivers"),
        Kind("clock", "clocks that jump", "every run is driven once, to its end", 20, 2, each(clock), "clocks"),
        Kind("home", "two apps and a terminal on one home", "every step stored once; every command answered once", 50,
             5, home, "one_home"),
        Kind("soak", "a long run with three tabs", "memory grows by less than 64 MB", 5000, 5000, soak, "soak"),
        Kind("run_files", "generated run files", SENTENCE, 10_000, 1000, inputs("run_files"), "generated"),
        Kind("readers", "generated files of texts", SENTENCE, 10_000, 1000, inputs("readers"), "generated"),
        Kind("commands", "generated commands", SENTENCE, 10_000, 1000, inputs("commands"), "generated"),
        Kind("addresses", "generated query values", "a page without an error, within 2 s of computing", 10_000, 500,
             inputs("addresses"), "generated"),
    )
}  # fmt: skip
