"""Two drivers, clocks and locks, in short: what a process that stood still finds when it goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from storage import RunStore, StoreBusy, StoreError, connection, drivers
from tests.faults import clocks, locks
from tests.faults.two_drivers import (
    another_host,
    drive_to_the_end,
    lose_at_write,
    new_run,
    nobody_here_takes_it,
    started,
    take_over,
    until_stopped,
)  # fmt: skip
from tests.scripted import Script

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")


@pytest.mark.slow
def test_a_driver_that_stood_still_in_any_phase_while_another_took_over_changes_nothing_more(tmp_path: Path) -> None:
    assert set(take_over(tmp_path)) == {"loading", "baseline", "step", "sampling", "checkpoint", "resuming"}


@pytest.mark.parametrize("after", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("resume", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_is_lost_at_any_one_of_its_writes_is_written_to_no_more(
    tmp_path: Path, resume: bool, after: bool
) -> None:
    at = 1
    while lose_at_write(tmp_path, at, resume, after):
        at += 1
    assert at > 20, "every write of a steered run is tried"


@pytest.mark.slow
def test_a_driver_that_stands_still_inside_a_transaction_is_waited_for_and_goes_on(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = new_run(store, "inside")
    with started("transaction", 3, 0, "resume", run_id, "--home", tmp_path) as process:
        until_stopped(process)
        with another_host(ahead=3600), mock.patch.object(connection, "WAIT_SECONDS", 0.3), pytest.raises(StoreBusy):
            store.claim(run_id, store.new_owner())
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "finished at step 7" in out, err
    clocks.driven_once(store, run_id)
    store.close()


@pytest.mark.slow
def test_clocks_that_jump_end_no_run(tmp_path: Path) -> None:
    clocks.jumping(tmp_path, 30.0)


@pytest.mark.parametrize("kind", locks.KINDS)
def test_a_locked_store_is_waited_for_and_given_up_in_one_sentence(tmp_path: Path, kind: str) -> None:
    locks.waited_for(tmp_path / "waited", kind, 0.6)
    sentence = locks.given_up(tmp_path / "given up", kind)
    assert str(tmp_path) in sentence and sentence.endswith(".") and "\n" not in sentence


def test_a_lock_that_comes_in_the_middle_of_a_run_loses_no_step(tmp_path: Path) -> None:
    locks.run_in_the_meantime(tmp_path, 0.5)


# ------------------------------------------------------------------------------------------------ who is alive


def test_a_process_of_this_host_lives_until_it_is_gone_and_no_other_with_its_number_is_taken_for_it() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as child:
        host, pid, rest = drivers.new_owner().rsplit(":", 2)
        start, here, token = rest.split("-")
        its = f"{host}:{child.pid}:{drivers.started(child.pid)}-{here}-{token}"
        assert drivers.lives(its, until=0.0) is True, "the end of its lease is not asked for"
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert drivers.lives(its, until=0.0) is True and drivers.is_stopped(its)
        assert drivers.lives(f"{host}:{child.pid}:{int(start) - 1}-{here}-{token}", until=4e9) is False, (
            "another process"
        )
        assert drivers.lives(f"{host}:{child.pid}:{start}-0badcafe-{token}", until=0.0) is None, "another host"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert drivers.lives(its, until=4e9) is False, "its parent has not noticed yet"
    assert drivers.lives(its, until=4e9) is False and not drivers.is_stopped(its)


def test_an_owner_of_an_older_version_is_asked_for_by_its_number_and_its_lease() -> None:
    own = f"{socket.gethostname()}:{os.getpid()}:abcd"
    assert drivers.lives(own, until=time.time()) is True
    assert drivers.lives(own, until=1.0) is False, "this process began after that lease had ended: a number used twice"
    for other in ("elsewhere:1:x", "no number at all", f"{socket.gethostname()}:x:y", ""):
        assert drivers.lives(other, until=4e9) is None


def test_a_driver_that_ended_frees_its_run_although_its_process_goes_on(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id, owner = new_run(store, "a"), store.new_owner()
    assert store.claim(run_id, owner) and not store.claim(run_id, store.new_owner())
    store.set_status(run_id, "running")
    store.retire(owner)
    assert store.interrupt_abandoned() == [run_id]
    store.close()


def test_a_lease_of_another_host_outlasts_a_minute_less_a_heartbeat_of_difference_between_clocks(
    tmp_path: Path,
) -> None:
    store = RunStore(tmp_path)
    run_id = new_run(store, "a")
    assert store.claim(run_id, "elsewhere:1:x")
    store.set_status(run_id, "running")
    for ahead, gone in ((55.0, []), (-3600.0, []), (65.0, [run_id])):
        with another_host(ahead):
            assert store.interrupt_abandoned() == gone
    store.close()


def test_who_looked_at_a_waiting_run_and_stood_still_does_not_begin_it_anew_after_its_end(tmp_path: Path) -> None:
    """Between looking and claiming another process may have driven the run to its end, and let it go."""
    store = RunStore(tmp_path)
    run_id = new_run(store, "a")
    seen = store.next_queued()
    drive_to_the_end(store, run_id, Script().open)
    assert seen and not store.claim(run_id, store.new_owner(), among=("queued",))
    assert store.claim(run_id, store.new_owner(), among=("finished",))
    store.close()


def test_what_is_written_inside_a_transaction_that_fails_is_written_not_at_all(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id, owner = new_run(store, "a"), store.new_owner()
    store.claim(run_id, owner)
    with pytest.raises(StoreError, match="asleep"), store.owned(run_id, owner):
        store.rename(run_id, "b")
        store.add_event(run_id, "guard")
        store.set_status(run_id, "asleep")
    assert (store.run(run_id) or {})["name"] == "a" and [e["kind"] for e in store.events(run_id)] == ["created"]
    store.retire(owner)
    nobody_here = store.new_owner()
    with pytest.raises(store.NotHeld, match="took"), store.owned(run_id, nobody_here):
        store.rename(run_id, "b")
    store.delete_run(run_id)
    with pytest.raises(store.NotHeld, match="deleted"), store.owned(run_id, owner):
        raise AssertionError("nobody holds what is not there")
    nobody_here_takes_it(store, [])
    store.close()
