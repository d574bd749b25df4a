"""The verbs that send a command to a run of another process, and wait for its result."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from terminal.facts import driven, find, stopped, summary, title, way_on
from terminal.text import BROKEN, BadInput, Broken, answer, say
from unlearn_core.settings.changes import flat
from unlearn_core.settings.run_config import RunConfig, check_prompt, with_settings

if TYPE_CHECKING:
    from storage import RunStore

POLL_SECONDS = 0.1
BUSY_SECONDS = 10.0


def pause(args: argparse.Namespace, store: RunStore) -> int:
    return steer(args, store, find(store, args.run), "pause", {})


def step(args: argparse.Namespace, store: RunStore) -> int:
    return steer(args, store, find(store, args.run), "step", {})


def set_(args: argparse.Namespace, store: RunStore) -> int:
    """Of a run that nobody drives, what it goes on with is stored here."""
    run, settings = find(store, args.run), flat(with_settings({}, args.settings))
    if driven(run):
        request(args, store, run, "set", {"set": settings})
    else:
        with store.write():  # behind the lock, so that no driver begins it in between
            run = find(store, run["id"])
            if driven(run):
                raise BadInput(f"{title(run)} has just been taken up by a process; set it again.")
            if run["status"] in ("finished", "failed"):
                raise BadInput(f"{title(run)} is {run['status']}; nothing is taken with other settings.")
            config = RunConfig.from_dict(run["config"]).changed(run["last_step"] + 1, settings)
            store.set_config(run["id"], config.to_dict())
    step = max(change["step"] for change in (store.run(run["id"]) or run)["config"]["changes"])
    shown = ", ".join(f"{name} = {value}" for name, value in settings.items())
    facts = summary(store, run["id"])
    text = f"set: done. {title(run)} goes on with {shown} from step {step} on."
    answer(args.json, {"command": "set", "state": "done", "from_step": step, "set": settings, "run": facts}, text)
    return 0


def stop(args: argparse.Namespace, store: RunStore) -> int:
    run = find(store, args.run)
    if driven(run):
        return steer(args, store, run, "stop", {})
    if run["status"] in ("finished", "stopped", "failed"):
        raise BadInput(f"{title(run)} is {run['status']}; there is nothing to stop.")
    with store.write():  # behind the lock, so that no driver begins it in between
        if driven(find(store, run["id"])):
            raise BadInput(f"{title(run)} has just been taken up by a process; stop it again.")
        store.set_status(run["id"], "stopped", "Stopped while nothing drove it.", "stopped")
    return done(args, store, run, "stop")


def prompt(args: argparse.Namespace, store: RunStore) -> int:
    run, text = find(store, args.run), check_prompt(args.text, "--text")
    roles = {row["slot"]: row["role"] for row in store.prompts(run["id"], at_step=run["last_step"])}
    if args.slot is not None and args.slot not in roles:
        slots = ", ".join(map(str, roles))
        raise BadInput(f"{title(run)} asks nothing in slot {args.slot}; its questions are in slots {slots}.")
    role = args.role or roles.get(args.slot, "free")
    payload = {"slot": args.slot, "role": role, "text": text.replace("{target}", run["target"])}
    return steer(args, store, run, "prompt", payload)


def steer(
    args: argparse.Namespace, store: RunStore, run: Mapping[str, Any], kind: str, payload: Mapping[str, Any]
) -> int:
    request(args, store, run, kind, payload)
    return done(args, store, run, kind)


def done(args: argparse.Namespace, store: RunStore, run: Mapping[str, Any], kind: str) -> int:
    facts = summary(store, run["id"])
    text = f"{kind}: done. {title(run)} is {facts['status']} at step {facts['step']} of {facts['steps']}."
    answer(args.json, {"command": kind, "state": "done", "run": facts}, text)
    return 0


def request(
    args: argparse.Namespace, store: RunStore, run: Mapping[str, Any], kind: str, payload: Mapping[str, Any]
) -> None:
    """Returns when the driver has done it. Raises BadInput where it refuses, and where nobody drives the run."""
    if not driven(run):
        way_out = f" Go on with it: {way_on(run, args.home)}" if run["status"] != "finished" else ""
        raise BadInput(f"Nobody drives {title(run)}; it is {run['status']} at step {run['last_step']}.{way_out}")
    command = store.request(run["id"], kind, payload)
    say(f"{kind}: requested of {run['lease_owner']}")
    began, shown = time.monotonic(), ""
    while not (row := _row(store, run, command))["done_at"]:
        if not driven(store.run(run["id"]) or run):
            # Left open, it would be done by whoever drives the run next, perhaps tomorrow.
            store.finish(command, "Its driver went away before it was done.", "driver_gone")
        elif row["acknowledged_at"] and shown != "acknowledged":
            shown = "acknowledged"
            say(f"{kind}: acknowledged")
        elif not shown and time.monotonic() - began > BUSY_SECONDS:
            shown = "waiting"
            say(f"{kind}: not yet acknowledged.{stopped(run) or ' The run is busy with a step or with answers.'}")
        time.sleep(POLL_SECONDS)
    if not row["error"]:
        return
    failed = row["code"] in BROKEN
    if args.json:
        state = "failed" if failed else "refused"
        answer(True, {"command": kind, "state": state, "code": row["code"], "reason": row["error"]}, "")
    if failed:
        raise Broken(f"{kind}: not done. {row['error']}")
    raise BadInput(f"{kind}: refused. {row['error']}")


def _row(store: RunStore, run: Mapping[str, Any], command: int) -> dict[str, Any]:
    return next(row for row in store.commands(run["id"], limit=-1) if row["id"] == command)
