"""Command-line entry point: the same runs as in the browser, without one. `python cli.py --help` names the verbs.

What takes long to import (PyTorch) is imported where it is needed: looking at runs answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from terminal.text import BROKEN, BadInput, Broken, answer, indented, losses, plain, say
from unlearn_core.running.log import LogFile, internal_error
from unlearn_core.running.protocols import Config, Session
from unlearn_core.settings import toml_text
from unlearn_core.settings.disk import full_disk
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.home import CACHE, home_folder
from unlearn_core.settings.presets import PRESETS
from unlearn_core.settings.report import Report, silent
from unlearn_core.settings.run_config import RunConfig, check_prompt, with_settings
from unlearn_core.settings.sections import ROLES

if TYPE_CHECKING:
    from storage import RunStore
    from terminal.progress import Follower
    from unlearn_core.running.worker import Worker

TICK_SECONDS = 0.1


@contextmanager
def opened(args: argparse.Namespace, writing: bool = False) -> Iterator[RunStore]:
    """The store of `--home`. One from a newer version can be read: its notice goes to stderr."""
    from storage import RunStore, StoreBusy, StoreError

    try:
        store = RunStore(home_folder(args.home), on_wait=say)
    except StoreBusy as error:
        raise Broken(str(error)) from None
    except StoreError as error:
        raise BadInput(str(error)) from None
    try:
        if store.read_only and writing:
            raise BadInput(store.notice)
        told = store.notice
        if told:
            say(told)
        if not store.read_only:
            store.interrupt_abandoned()
        yield store
        if store.notice and store.notice != told:  # it was damaged, and that was found while it was read
            say(store.notice)
    except StoreError as error:
        raise Broken(str(error)) from None
    finally:
        store.close()


def read_config(args: argparse.Namespace, look: bool = True) -> RunConfig:
    """The run file with --preset, --name and --set laid over it, checked; with `look`, its texts are searched."""
    from unlearn_core.corpus.windows import check_target

    given: dict[str, Any] = {}
    if args.file:
        try:
            given = toml_text.read(Path(args.file))
        except OSError as error:
            raise BadInput(f"The run file {args.file} cannot be read: {error.strerror}.") from None
    for key in ("preset", "name"):
        if (value := getattr(args, key, None)) is not None:
            given[key] = value
    config = RunConfig.from_dict(with_settings(given, args.set))
    if look:
        check_target(config)
    return config


def open_session(config: Config, report: Report, cache: Path | None = None) -> Session:
    """What the worker is given; PyTorch is imported here, in the worker's thread."""
    from unlearn_core.training.engine import open_unlearner

    return open_unlearner(config, report, cache)


# ------------------------------------------------------------------------------------------- driving in this process


def run(args: argparse.Namespace) -> int:
    from unlearn_core.running.worker import Worker

    config = read_config(args)
    with opened(args, writing=True) as store:
        worker = Worker(store, partial(open_session, cache=store.home / CACHE))
        with ended_softly(worker) as caught:
            worker.only = store.create_run(
                name=config.name,
                target=config.data.target,
                method=config.method.name,
                config=config.to_dict(),
                provenance={},
                seed=config.seed,
                prompts=[asdict(prompt) for prompt in config.prompts],
                owner=worker.owner,  # held from the first moment on, so that an open app does not take it
            )
            return drive(args, store, worker, caught)


def resume(args: argparse.Namespace, store: RunStore) -> int:
    from terminal.facts import driven, find, stopped, title
    from terminal.steer import steer
    from unlearn_core.running.worker import Worker

    run = find(store, args.run)
    if driven(run) and run["status"] == "paused":
        return steer(args, store, run, "resume", {})
    if driven(run) or run["status"] == "finished":
        raise BadInput(f"{title(run)} is {run['status']}; there is nothing to resume.{stopped(run)}")
    worker = Worker(store, partial(open_session, cache=store.home / CACHE), only=run["id"], resume=True)
    with ended_softly(worker) as caught:
        return drive(args, store, worker, caught)


def branch(args: argparse.Namespace, store: RunStore) -> int:
    """A child with its own settings from a step on, driven here."""
    from storage.branches import branch_run
    from terminal.facts import find, title
    from unlearn_core.running.worker import Worker
    from unlearn_core.settings.changes import flat

    parent = find(store, args.run)
    if not 0 <= args.step <= parent["last_step"]:
        raise BadInput(f"{title(parent)} has no step {args.step}; its steps are 0 to {parent['last_step']}.")
    name = args.name or f"{parent['name']} from {args.step}"
    so_far = [change for change in parent["config"].get("changes", ()) if change["step"] <= args.step]
    config = RunConfig.from_dict({**parent["config"], "name": name, "changes": so_far})
    if args.set:
        config = config.changed(args.step + 1, flat(with_settings({}, args.set)))
    worker = Worker(store, partial(open_session, cache=store.home / CACHE))
    with ended_softly(worker) as caught:
        worker.only, worker.resumes = branch_run(
            store, parent["id"], args.step, config.to_dict(), config.name, worker.owner
        )
        return drive(args, store, worker, caught)


@contextmanager
def ended_softly(worker: Worker) -> Iterator[list[int]]:
    """Within: Ctrl-C or SIGTERM ends the run whole after its current step, a second one kills. Yields what came."""
    caught: list[int] = []
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A signal that is being ignored (nohup, a job in the background) stays ignored.
    usual = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}

    def end(number: int, frame: Any) -> None:
        caught.append(number)
        for each in usual:
            signal.signal(each, signal.SIG_DFL)
        worker.stop(timeout=0)

    for number in usual:
        signal.signal(number, end)
    try:
        yield caught
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def drive(args: argparse.Namespace, store: RunStore, worker: Worker, caught: list[int]) -> int:
    """Follows the worker to the end of its run, or until a guard pauses it; returns the exit code."""
    from terminal.facts import title
    from terminal.progress import Follower

    assert worker.only
    follower = Follower(store, worker.only, sys.stderr)
    follower.line.say(f"{title(follower.run)}: unlearning {follower.run['target']}.")
    went_on_at, announced = -1, False
    worker.start()
    while worker.alive:
        follower.tick()
        step, held = follower.run["last_step"], follower.guard and follower.run["status"] == "paused"
        if caught and not announced:
            announced = True
            follower.line.say("Ending after this step; a second signal kills.")
        elif held and args.through and step != went_on_at:  # paused at the same step again: it cannot go on
            went_on_at, follower.guard = step, None
            with suppress(store.NotHeld), store.owned(worker.only, worker.owner):  # of another driver: its own matter
                store.request(worker.only, "resume")
        elif held or worker.failure:
            worker.stop(timeout=0)
        time.sleep(TICK_SECONDS)
    follower.tick()
    follower.line.clear()
    if worker.failure:
        raise Broken(worker.failure)
    return ended(args, store, follower, caught)


def ended(args: argparse.Namespace, store: RunStore, follower: Follower, caught: list[int]) -> int:
    """Says how it ended and how to go on; returns the exit code: 0 where it ended, or a guard paused it."""
    from terminal.facts import driven, summary, title, way_on

    if driven(follower.run):
        raise BadInput(f"{title(follower.run)} is driven by another process ({follower.run['lease_owner']}).")
    facts = summary(store, follower.run["id"])
    place = f"{title(facts)} {facts['status']} at step {facts['step']} of {facts['steps']}"
    if facts["status"] == "failed":
        say(f"{place}: {facts['reason']}")
        code = [event["payload"].get("code") for event in store.events(facts["id"]) if event["kind"] == "failed"][-1]
        return 1 if code in BROKEN else 2
    lines = [f"{place}: {plain(facts['reason'] or '')}", losses(facts["points"], facts["baseline"])]
    if facts["status"] in ("paused", "interrupted"):
        lines.append(f"Go on with: {way_on(facts, args.home)}")
    answer(args.json, facts, "\n".join(line for line in lines if line))
    if facts["status"] in ("finished", "stopped"):
        return 0
    if caught:
        return 128 + caught[0]
    return 0 if facts["status"] == "paused" else 1


# --------------------------------------------------------------------------------- verbs that need both halves


def probe(args: argparse.Namespace, store: RunStore) -> int:
    """One question to the adapters of chosen steps: asked of the run's driver, or here where there is none."""
    from terminal.facts import driven, find
    from terminal.steer import request
    from unlearn_core.running.commands import Refused
    from unlearn_core.running.commands import probe as answer_here

    run = find(store, args.run)
    text = check_prompt(args.prompt, "--prompt").replace("{target}", run["target"])
    payload = {"steps": args.step, "text": text}
    if driven(run):
        request(args, store, run, "probe", payload)
    else:
        say("probe: nobody drives the run; it is answered here.")
        try:
            answer_here(store, run["id"], open_session(run["config"], silent), payload)
        except (Refused, ValueError) as error:
            raise BadInput(str(error)) from None
    probed = [event["payload"] for event in store.events(run["id"]) if event["kind"] == "probed"][-1]
    rows = store.responses(run["id"])
    rows = rows[(rows.prompt_id == probed["prompt_id"]) & rows.step.isin(probed["checkpoint_steps"])]
    answers = [{"step": int(row.step), "text": row.text} for row in rows.itertuples()]
    lines = [f"step {each['step']}  {indented(plain(each['text']), 8)}" for each in answers]
    answer(args.json, {"prompt": text, "steps": args.step, "answers": answers}, "\n".join(lines))
    return 0


def windows(args: argparse.Namespace) -> int:
    config = read_config(args, look=False)
    from transformers.utils import logging as transformers_logging

    from terminal.look import looked_into
    from terminal.progress import Reading
    from unlearn_core.corpus.preview import inspect

    transformers_logging.set_verbosity_error()  # texts longer than the model reads are what windows are cut from
    home, measured = home_folder(args.home), None
    if (home / "lethe.db").is_file():  # a run that costs the same has measured its steps, as Data says as well
        with opened(args) as store:
            measured = store.step_seconds_like(config.to_dict())
    reading = Reading(sys.stderr)
    try:
        facts = inspect(config.to_dict(), reading.tell, home / CACHE, measured)
    finally:
        reading.line.clear()
    answer(args.json, facts, "\n".join(looked_into(facts, config.data.everything)))
    return 0


def export(args: argparse.Namespace, store: RunStore) -> int:
    from storage.export import export_run
    from terminal.facts import find

    paths = [str(path) for path in export_run(store, find(store, args.run)["id"], Path(args.to).expanduser())]
    answer(args.json, paths, "\n".join(paths))
    return 0


def bench(args: argparse.Namespace) -> int:
    from bench import machine

    if args.only and args.part not in ("methods", "words", "real"):
        raise BadInput("--only names methods or words; it goes with `bench methods`, `bench words` and `bench real`.")
    if args.part in (None, *machine.PARTS):
        if args.set or args.again or (args.docs and args.part):
            raise BadInput(
                "--set, --again and --docs go with methods, words, real, rails, as_run, gpu (--docs also with no part)."
            )
        return machine.main(args.json, args.part, args.docs)
    return int(importlib.import_module(f"bench.{args.part}").main(args))


# ----------------------------------------------------------------------------------------------------- arguments


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; `{self.prog} --help` says what is known.")


class Version(argparse.Action):
    """Prints the version, which is read only where it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        project = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))["project"]
        print(f"Lethe {project['version']}")
        parser.exit()


def settings_of_a_run() -> Parser:
    parser = Parser(add_help=False)
    parser.add_argument("file", nargs="?", metavar="FILE.toml", help="the run file (default: the bundled run)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one setting; repeatable"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    return parser


def make_parser() -> Parser:
    from terminal import look, manage, steer
    from terminal.methods import methods

    shared, settings, driving, one = (
        Parser(add_help=False),
        settings_of_a_run(),
        Parser(add_help=False),
        Parser(add_help=False),
    )
    shared.add_argument("--home", metavar="DIR", help="where runs are kept (default: $LETHE_HOME, or ./data)")
    shared.add_argument("--json", action="store_true", help="the outcome as JSON on stdout")
    driving.add_argument("--through", action="store_true", help="go on where a guard pauses the run")
    one.add_argument("run", metavar="RUN", help="its id, the beginning of its id, or its name")
    top = Parser(prog="cli.py", description="Lethe: watch a language model forget a word, from the terminal.")
    top.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def verb(act: Callable[..., int], help: str, *parents: Parser, store: str | None = None) -> argparse.ArgumentParser:
        name = act.__name__.rstrip("_")
        added = verbs.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", parents=[*parents, shared]
        )
        added.set_defaults(act=act, store=store)
        return added

    verb(run, "begin a run and drive it here, to its end or until a guard pauses it", settings, driving).add_argument(
        "--name", help="of the run"
    )
    verb(resume, "go on with a run: here, or where it is held paused", one, driving, store="written")
    twig = verb(branch, "go on from a step of a run as another run, with other settings", one, driving, store="written")
    twig.add_argument("--step", type=int, required=True, metavar="K", help="the last step that both have")
    twig.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="from the next step on")
    twig.add_argument("--name", help="of the new run")
    verb(steer.pause, "pause a run after its current step", one, store="written")
    verb(steer.stop, "end a run after its current step, with a whole checkpoint", one, store="written")
    verb(steer.step, "take one step of a paused run", one, store="written")
    turn = verb(steer.set_, "go on with other settings, from the next step on", one, store="written")
    turn.add_argument("settings", nargs="+", metavar="SECTION.KEY=VALUE", help="such as optimizer.learning_rate=1e-4")
    edit = verb(steer.prompt, "ask something else from now on", one, store="written")
    edit.add_argument("--slot", type=int, metavar="N", help="the question it replaces (default: it is one more)")
    edit.add_argument("--text", required=True, metavar="T", help="the question; {target} stands for the word")
    edit.add_argument("--role", choices=ROLES, help="of the question (default: as before, or free)")
    ask = verb(probe, "ask the adapters of chosen steps something, once", one, store="written")
    ask.add_argument("--step", type=int, nargs="+", required=True, metavar="K", help="the nearest checkpoint answers")
    ask.add_argument("--prompt", required=True, metavar="T", help="the question; {target} stands for the word")
    verb(look.runs, "every run, newest first", store="read")
    verb(look.show, "one run: state, numbers, answers before and now", one, store="read")
    two = verb(look.compare, "the answers at two steps, of one run or of two, word by word", store="read")
    two.add_argument("one", metavar="RUN@STEP")
    two.add_argument("other", metavar="RUN@STEP")
    verb(manage.rename, "give a run another name; its id stays", one, store="written").add_argument(
        "name", metavar="NAME"
    )
    gone = verb(manage.delete, "delete a run with its answers and checkpoints, after asking", one, store="written")
    gone.add_argument("--yes", action="store_true", help="do not ask")
    out = verb(export, "write a run's numbers, answers and adapter to a folder", one, store="read")
    out.add_argument("--to", required=True, metavar="DIR")
    verb(windows, "what would be forgotten: every occurrence, and the texts of every set", settings)
    verb(methods, "the unlearning methods: what each does, costs and needs, how it fails, and its knobs").add_argument(
        "name", nargs="?", metavar="NAME", help="only this one, in full, with its formula and source"
    )
    add_parts(verb(bench, "measure: this machine, or what the methods, the guard rails and the old defects do"))
    return top


def add_parts(bench: argparse.ArgumentParser) -> None:
    """What can be measured by itself, and how; what is long can be stopped and goes on where it was."""
    bench.add_argument(
        "part",
        nargs="?",
        choices=("engine", "smollm2", "seek", "app", "methods", "words", "real", "rails", "as_run", "gpu"),
        help="engine, smollm2, seek, app: what Lethe costs; methods: each at its own settings; words: the default "
        "recipe on any words of the bundled world; real: a real model forgets a name (with requirements-real.txt); "
        "rails: retain damage at equal forgetting; as_run: the published defects; gpu: steps of a 6B model",
    )
    bench.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="methods, words, real: only these"
    )
    bench.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="laid over all settings")
    bench.add_argument("--seeds", type=int, default=3, metavar="N", help="words, real, rails, as_run: 0 to N - 1")
    bench.add_argument("--minutes", type=float, default=55.0, metavar="M", help="methods: for all of them together")
    bench.add_argument("--shape", choices=("gptj-6b", "tiny"), default="gptj-6b", help="gpu: tiny runs anywhere")
    bench.add_argument("--again", action="store_true", help="measure anew what has been measured")
    bench.add_argument("--docs", action="store_true", help="write the results to docs/results and its page in docs")


def act(args: argparse.Namespace) -> int:
    if args.store is None:
        return int(args.act(args))
    with opened(args, writing=args.store == "written") as store:
        return int(args.act(args, store))


def main() -> int:
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        args = make_parser().parse_args()
        with closing(LogFile(home_folder(args.home))):
            return logged(args)
    except (BadInput, ConfigError) as error:
        say(str(error))
        return 2
    except Broken as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("Stopped; nothing was changed.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # its reader has gone: nothing is left to say
        return 1


def logged(args: argparse.Namespace) -> int:
    """The verb; an unexpected error is logged with its traceback, and printed as a sentence."""
    try:
        return act(args)
    except (BadInput, Broken, ConfigError, BrokenPipeError):
        raise
    except Exception as error:
        if sentence := full_disk(error):
            raise Broken(sentence) from None
        logging.getLogger("lethe").exception("the command line failed")
        raise Broken(internal_error(home_folder(args.home), error)) from None


if __name__ == "__main__":
    sys.exit(main())
