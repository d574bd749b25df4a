"""Paths out of a store or a file stay where they belong: nothing outside is read, copied or deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import RunStore, StoreError
from storage.export import export_run
from tests.faults.material import begin, take_step
from unlearn_core.corpus.documents import documents
from unlearn_core.settings.errors import ConfigError
from unlearn_core.settings.home import Outside, on_network, within
from unlearn_core.settings.run_config import RunConfig

LEADING_OUT = [
    "../outside", "/etc", "checkpoints/../../outside", "..\\outside", "checkpoints\\..\\..\\outside", "C:\\outside",
    "C:outside", "\\\\host\\share", "//host/share", "\\/host/share", "/\\host\\share", "checkpoints/a:b", "", ".",
    "checkpoints/\0", "link/inside", "\\\\?\\C:\\outside", "//?/UNC/host/share",
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    opened = RunStore(tmp_path / "home")
    yield opened
    opened.close()


@pytest.mark.parametrize("stored", LEADING_OUT)
def test_a_path_that_leads_out_is_refused_and_its_form_before_the_disk_is_touched(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside" / "inside").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "link").symlink_to(tmp_path / "outside")
    if "link" not in stored:  # whether a link leads out is only to be seen on the disk
        touched: list[str] = []
        monkeypatch.setattr("os.path.realpath", lambda path: touched.append(str(path)) or str(path))
    with pytest.raises(Outside):
        within(tmp_path / "home", stored)
    assert "link" in stored or all("host" not in path and "etc" not in path for path in touched)


def test_a_path_that_stays_is_the_same_with_either_slash(tmp_path: Path) -> None:
    folder = within(tmp_path, "checkpoints/0badcafe/step-000001")
    assert folder == within(tmp_path, "checkpoints\\0badcafe\\step-000001")
    assert folder == (tmp_path / "checkpoints" / "0badcafe" / "step-000001").resolve()
    assert on_network("//host/x") and on_network(" \\\\host\\x") and not on_network("/x//y") and not on_network("x")


@pytest.mark.parametrize(
    "place", ["../outside", "{outside}", ".", "checkpoints", "cache", "lethe.db", "linked/step-000002"]
)
def test_no_reader_of_a_checkpoint_and_no_deletion_leaves_the_checkpoints(
    store: RunStore, tmp_path: Path, place: str
) -> None:
    """As a store that was edited by hand, or came from elsewhere, may say."""
    run_id, outside = begin(store), tmp_path / "outside"
    take_step(store, run_id, 1)
    take_step(store, run_id, 2)
    (store.home / "checkpoints" / run_id / "step-000002").rename(outside)
    (store.home / "cache").mkdir()
    (store.home / "linked").symlink_to(tmp_path)
    (store.home / "checkpoints" / run_id / "step-000002").symlink_to(outside)
    with store.write() as conn:
        path = place.format(outside=outside).replace("linked", f"checkpoints/{run_id}")
        conn.execute("UPDATE checkpoints SET path = ? WHERE step = 2", (path,))
    row = store.checkpoints(run_id)[-1]
    held = sorted(path.name for path in outside.iterdir())
    for read in (
        lambda: store.checkpoint_folder(row),
        lambda: store.verified_checkpoint(row),
        lambda: store.verified_checkpoint(row, whole=True),
        lambda: export_run(store, run_id, tmp_path / "out"),
    ):
        with pytest.raises(StoreError, match="step 2"):
            read()
    assert not (tmp_path / "out" / "adapter").exists() and not store.has_checkpoint(row)
    store.shrink_checkpoint(row["id"])
    store.remove_checkpoints(run_id, store.truncate_after(run_id, 1))
    store.tidy_checkpoints(run_id, after_a_driver=True)
    assert sorted(path.name for path in outside.iterdir()) == held
    assert (store.home / "cache").is_dir() and (store.home / "lethe.db").is_file()
    assert (store.home / "checkpoints" / run_id / "step-000001").is_dir()
    store.delete_run(run_id)
    assert sorted(path.name for path in outside.iterdir()) == held, "a link goes without what it leads to"


def test_a_run_s_checkpoints_are_not_another_s_to_delete(store: RunStore) -> None:
    run_id, other = begin(store), begin(store)
    take_step(store, other, 1)
    store.remove_checkpoints(run_id, [f"checkpoints/{other}/step-000001", f"checkpoints/{other}", "checkpoints"])
    assert (store.home / "checkpoints" / other / "step-000001" / "state.json").is_file()


def test_checkpoints_behind_a_link_that_leads_out_of_the_home_are_neither_read_nor_written(
    store: RunStore, tmp_path: Path
) -> None:
    run_id = begin(store)
    (tmp_path / "elsewhere").mkdir()
    (store.home / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out"):
        take_step(store, run_id, 1)
    (tmp_path / "elsewhere" / run_id).mkdir()
    store.delete_run(run_id)
    assert (tmp_path / "elsewhere" / run_id).is_dir() and len(list((tmp_path / "elsewhere").iterdir())) == 1


@pytest.mark.parametrize("section", ["model.source", "model.adapter", "model.earlier", "data.forget", "data.retain"])
@pytest.mark.parametrize("named", ["\\\\host\\share\\x", "//host/share/x", "hf://host/x"])
def test_a_setting_that_names_another_machine_is_refused_before_it_is_looked_at(
    section: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, name = section.split(".")
    touched: list[str] = []
    stat = os.stat

    def watched(path, *rest, **more):
        touched.append(str(path))
        return stat(path, *rest, **more)

    monkeypatch.setattr("os.stat", watched)
    with pytest.raises(ConfigError, match="another machine") as error:
        RunConfig.from_dict({part: {name: [named] if name in ("earlier", "forget", "retain") else named}})
    assert error.value.field == section and not [path for path in touched if "host" in path]


@pytest.mark.parametrize("named", ["../secret.arrow", "/etc/hostname", "\\\\host\\x.arrow", "linked.arrow"])
def test_a_data_set_that_names_files_of_others_is_not_read(tmp_path: Path, named: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.arrow").write_bytes(b"secret")
    (folder / "linked.arrow").symlink_to(tmp_path / "secret.arrow")
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": named}]}))
    with pytest.raises(ConfigError, match="not a file of its folder"):
        list(documents([str(folder)]))
