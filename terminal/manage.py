"""The verbs that change what is kept of a run: another name, or nothing any more."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pages.shared.deleting import lost
from terminal.facts import driven, find, title
from terminal.text import BadInput, answer, plain

if TYPE_CHECKING:
    from storage import RunStore

LONGEST_NAME = 80  # characters, as on Runs


def rename(args: argparse.Namespace, store: RunStore) -> int:
    """Another name for a run; its id stays."""
    run, name = find(store, args.run), args.name.strip()
    if not name:
        raise BadInput("A run needs a name: write at least one letter.")
    if len(name) > LONGEST_NAME:
        raise BadInput(f"The name has {len(name)} characters; at most {LONGEST_NAME} are shown.")
    store.rename(run["id"], name)
    facts = {"id": run["id"], "name": name, "was": run["name"]}
    answer(args.json, facts, f"{title(run)} is now “{plain(name)}”.")
    return 0


def delete(args: argparse.Namespace, store: RunStore) -> int:
    """Deletes a run after naming what goes with it: a person is asked, a script says --yes."""
    run = find(store, args.run)
    if driven(run):
        raise BadInput(f"{title(run)} is being driven by {run['lease_owner']}; stop it before deleting it.")
    sentence = lost(run, len(store.responses(run["id"])), store.checkpoints(run["id"]))
    if not args.yes and not _agreed(sentence):
        raise BadInput(f"{plain(sentence)} Nothing was deleted: --yes deletes it.")
    store.delete_run(run["id"])
    answer(args.json, {"id": run["id"], "name": run["name"], "deleted": True}, f"{title(run)} is deleted.")
    return 0


def _agreed(sentence: str) -> bool:
    """Whether the person at the terminal says yes; False where nobody is there to be asked."""
    if not sys.stdin.isatty():
        return False
    print(f"{plain(sentence)} Delete it for good? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")
