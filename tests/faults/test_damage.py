"""A damaged store tells what it still can and is never written; a damaged checkpoint is never used."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest

from storage import RunStore, StoreError
from storage.export import export_run
from tests.faults.damage import PAGE, of_a_checkpoint, of_a_store
from tests.faults.material import begin, finished, take_step


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("good") / "home"
    return home, finished(home, steps=6)


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_store_with_flipped_bits_is_read_as_far_as_it_goes_and_never_written(
    tmp_path: Path, good: tuple[Path, str], count: int
) -> None:
    noticed = [of_a_store(good[0], tmp_path / f"{seed}", seed) for seed in range(count)]
    assert any(noticed) and not all(noticed)


@pytest.mark.parametrize("count", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_no_checkpoint_is_used_that_is_not_what_was_saved(tmp_path: Path, good: tuple[Path, str], count: int) -> None:
    for seed in range(count):
        of_a_checkpoint(*good[:1], tmp_path / f"{seed}", good[1], seed)


def test_of_a_table_with_a_damaged_page_the_rest_is_exported_and_the_way_out_is_named(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    with closing(RunStore(home)) as store:
        run_id = begin(store)
        for step in range(40):
            take_step(store, run_id, step, whole=False, numbers=60)
        with store.write() as conn:
            (pages,) = zip(
                *conn.execute("SELECT pageno FROM dbstat WHERE name = 'points' AND pagetype = 'leaf'"), strict=True
            )
    with (home / "lethe.db").open("r+b") as file:
        file.seek((pages[len(pages) // 2] - 1) * PAGE)
        file.write(random.Random(0).randbytes(PAGE))
    (home / "lethe-backup-005.db").touch()
    with closing(RunStore(home)) as store:
        with pytest.raises(StoreError) as error:
            export_run(store, run_id, out)
        assert "damaged" in str(error.value) and "lethe-backup-005.db" in str(error.value)
        with pytest.raises(StoreError, match="reading only"):
            store.rename(run_id, "x")
    steps = [int(line.split(",")[0]) for line in (out / "points.csv").read_text().splitlines()[1:]]
    assert {0, 39} <= set(steps) and 30 <= len(steps) <= 40
    assert (out / "adapter" / "adapter_config.json").is_file() and (out / "run.json").is_file()
