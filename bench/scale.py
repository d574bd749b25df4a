"""Pages and lists of a store with 12 million points, and the server's memory over reloads: `python -m bench.scale`

The store is made by `big_store.py`. A page is opened in a headless Chromium, each time in a session of its own. Its
time is that from the browser's request to run the page to the server's message that it has finished, as seen on the
browser's websocket: once right after the start (cold), then the median of the next ones (warm). The time of a verb is
that of its process less that of the same verb on an empty home. `--before COMMIT` measures an older program in the same
run, on a store that it has made itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench import ROOT
from bench.app import WINDOW, Reruns, browser, served
from bench.big_store import Size
from bench.report import Column, Report, Table, known, publish, today
from pages.shared.format import duration
from terminal.text import say
from unlearn_core.settings.provenance import library_versions

RUN = "00000001"  # the second of the store, which is damaged halfway
PAGES = {
    "Watch, first page": ("", 1.0),
    "Watch, the form of a new run": ("?new=1", 1.0),
    "Watch, a run": (f"?run={RUN}", 1.5),
    "Compare, two runs": (f"compare?a={RUN}@0&b=00000002@5000", 1.5),
    "Runs": ("runs", 1.0),
    "Data": ("data", 1.5),
    "Methods": ("methods", 1.5),
}
VERBS = {"runs": ["runs"], "show": ["show", RUN], "compare": ["compare", f"{RUN}@0", "00000002@5000"]}
RELOADS = (1, 40, 100)  # of Watch, after which the server's memory is read
RELOADS_BEFORE = (1, 40)  # the older program would take gigabytes
PATIENCE = 60.0  # seconds that are waited for a page


class Page(NamedTuple):
    """Seconds of a page: the first time, the median of the next ones, and processor time of the server in those."""

    cold: float | None
    warm: float | None
    busy: float


@contextmanager
def program(commit: str) -> Iterator[Path]:
    """The program as it was at a commit, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="lethe-before-") as folder:
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=packed, check=True)
        (Path(folder) / "bench" / "big_store.py").write_text((ROOT / "bench" / "big_store.py").read_text())
        yield Path(folder)


def run_in(root: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, *arguments], cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)


def opened(chromium: Any, address: str) -> float | None:
    """Seconds that the page's script took in a new tab; None where it took longer than is waited for."""
    page = chromium.new_page(viewport=WINDOW)
    try:
        reruns = Reruns(page)
        page.goto(address)
        end = time.monotonic() + PATIENCE
        while not reruns.whole:
            page.wait_for_timeout(20)
            if time.monotonic() > end:
                return None
        return reruns.whole[0] / 1000
    finally:
        page.close()


def pages(chromium: Any, address: str, server: psutil.Process, warm: int) -> dict[str, Page]:
    """Every page: the first time that this server shows it, then again."""
    measures = {}
    for name, (path, _) in PAGES.items():
        cold, times, busy = opened(chromium, f"{address}/{path}"), [], []
        for _ in range(warm if cold is not None else 0):
            began = sum(server.cpu_times()[:2])
            if (took := opened(chromium, f"{address}/{path}")) is not None:
                times.append(took)
                busy.append(sum(server.cpu_times()[:2]) - began)
        measures[name] = Page(cold, statistics.median(times) if times else None, statistics.median(busy or [0.0]))
        say(f"{name}: {measures[name]}")
    return measures


def memory(chromium: Any, address: str, server: psutil.Process, reloads: Sequence[int]) -> dict[int, float]:
    """Reloads of Watch -> the server's resident memory in bytes."""
    held = {}
    for count in range(1, max(reloads) + 1):
        opened(chromium, f"{address}/?run={RUN}")
        if count in reloads:
            held[count] = float(server.memory_info().rss)
            say(f"after {count} reloads: {held[count] / 1e6:.0f} MB")
    return held


def verbs(root: Path, home: Path, empty: Path, repeats: int = 3) -> dict[str, float]:
    """Verb -> seconds beside its start-up."""

    def took(arguments: list[str], where: Path) -> float:
        began = time.perf_counter()
        run_in(root, ["cli.py", *arguments, "--json", "--home", str(where)])
        return time.perf_counter() - began

    start = min(took(["runs"], empty) for _ in range(repeats))
    return {name: max(0.0, min(took(args, home) for _ in range(repeats)) - start) for name, args in VERBS.items()}


def measured(root: Path, home: Path, warm: int, reloads: Sequence[int]) -> dict[str, Any]:
    """All figures of the program in `root` on the store in `home`."""
    with (
        tempfile.TemporaryDirectory(prefix="lethe-empty-", ignore_cleanup_errors=True) as empty,
        browser() as chromium,
        served(home, root) as (address, number),
    ):
        server = psutil.Process(number)
        return {
            "memory": memory(chromium, address, server, reloads),
            "pages": pages(chromium, address, server, warm),
            "verbs": verbs(root, home, Path(empty)),
        }


def store_of(root: Path, folder: Path, size: Size) -> Path:
    """The home with the store in `folder`, made by the program in `root` where it is not there yet."""
    if not (folder / "lethe.db").exists():
        options = [f"--runs={size.runs}", f"--steps={size.steps}", f"--sample-every={size.sample_every}"]
        run_in(root, ["-m", "bench.big_store", str(folder), *options])
    return folder


def report(now: Mapping[str, Any], before: Mapping[str, Any] | None, size: Size, seconds: float) -> Report:
    """Times in one table, memory in another; with a column of the older program, where it was measured."""
    older = before or {"pages": {}, "verbs": {}, "memory": {}}
    nothing = Page(None, None, 0.0)
    times = [
        known(
            name=name,
            cold=_rounded(now["pages"][name].cold),
            warm=_rounded(now["pages"][name].warm),
            busy=_rounded(now["pages"][name].busy),
            goal=goal,
            warm_before=_rounded(older["pages"].get(name, nothing).warm),
        )
        for name, (_, goal) in PAGES.items()
    ]
    times += [
        known(name=f"`{name}`, beside its start-up", warm=_rounded(now["verbs"][name]), goal=1.0,
              warm_before=_rounded(older["verbs"].get(name)))
        for name in VERBS
    ]  # fmt: skip
    held = [
        known(name=f"after {count} reload{'s' if count > 1 else ''} of Watch", mb=now["memory"][count] / 1e6,
              mb_before=older["memory"].get(count, 0) / 1e6 or None)
        for count in RELOADS
    ]  # fmt: skip
    seconds_of = [Column("", "{name}", left=True), Column("cold", "{cold:g} s"), Column("warm", "{warm:g} s")]
    seconds_of += [Column("of it, the server's processor", "{busy:g} s"), Column("goal, warm", "{goal:g} s")]
    memory_of = [Column("memory of the server", "{name}", left=True), Column("now", "{mb:,.0f} MB")]
    if before:
        seconds_of.append(Column("warm, before", "{warm_before:g} s", missing=f"over {PATIENCE:.0f} s"))
        memory_of.append(Column("before", "{mb_before:,.0f} MB"))
    return Report(
        (Table(tuple(seconds_of), tuple(times)), Table(tuple(memory_of), tuple(held))),
        runs=f"{size.runs} runs of {size.steps:,} steps",
        took=duration(seconds),
        cores=os.cpu_count(),
        versions=library_versions(),
        date=today(),
        note=f"The machine was at a load of {os.getloadavg()[0]:.0f} at the end." if hasattr(os, "getloadavg") else "",
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", metavar="COMMIT", help="measure the program of this commit as well")
    parser.add_argument("--docs", action="store_true", help="write the results to docs/results and docs/performance.md")
    parser.add_argument("--warm", type=int, default=3, metavar="N", help="openings of a page after the first")
    parser.add_argument("--runs", type=int, default=Size.runs, metavar="N")
    parser.add_argument("--steps", type=int, default=Size.steps, metavar="N")
    parser.add_argument("--stores", type=Path, metavar="DIR", help="where the stores are, or are made and stay")
    args = parser.parse_args()
    size, began, before = Size(args.runs, args.steps), time.perf_counter(), None
    with tempfile.TemporaryDirectory(prefix="lethe-scale-", ignore_cleanup_errors=True) as temporary:
        folder = args.stores or Path(temporary)
        if args.before:
            with program(args.before) as older:
                before = measured(older, store_of(older, folder / "before", size), args.warm, RELOADS_BEFORE)
        now = measured(ROOT, store_of(ROOT, folder / "now", size), args.warm, RELOADS)
    found = report(now, before, size, time.perf_counter() - began)
    print(found.markdown())
    if args.docs:
        say(publish("scale", found))


if __name__ == "__main__":
    main()
