"""`python tests/held.py STEP verb ...`: `cli.py`, whose run waits before step STEP + 1 until it is told to end.

So a test can send its signal while the run is under way, however fast the machine is.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    import cli
    from unlearn_core.running.worker import Worker
    from unlearn_core.training.engine import StepRecord, Unlearner

    held_at, sys.argv = int(sys.argv[1]), ["cli.py", *sys.argv[2:]]
    told_to_end = threading.Event()
    step, stop = Unlearner.step, Worker.stop

    def held_step(run: Unlearner) -> StepRecord:
        if run.step_number >= held_at:
            told_to_end.wait()
        return step(run)

    def telling_stop(worker: Worker, timeout: float = 30.0) -> None:
        stop(worker, timeout=0)
        told_to_end.set()
        stop(worker, timeout)

    Unlearner.step, Worker.stop = held_step, telling_stop  # type: ignore[method-assign]
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
