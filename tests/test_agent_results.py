"""Results: whole or not there, each identity's own, within a quota."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_agent.build.bundle import write_bundle
from aegis_agent.build.log_file import MAX_LOG_BYTES, LogFile
from aegis_agent.results import ResultStore
from aegis_protocol.failures.build import TaskNotFound
from aegis_protocol.failures.source import DiskFull


def keep(store: ResultStore, task_id: str, data: bytes, *, age_s: float = 0) -> None:
    with store.draft("alice", task_id) as draft:
        draft.write("firmware.bin", "image", data)
        draft.commit()
    path, _ = store.path("alice", task_id, "firmware.bin")
    folder = path.parents[1]
    os.utime(folder, (folder.stat().st_mtime - age_s,) * 2)


def test_a_result_appears_whole(tmp: Path) -> None:
    store = ResultStore(tmp / "results", quota_bytes=1 << 20)
    with store.draft("alice", "t1") as draft:
        draft.write("firmware.bin", "image", b"image")
        with pytest.raises(TaskNotFound):
            store.artifacts("alice", "t1")
        draft.commit()
    path, artifact = store.path("alice", "t1", "firmware.bin")
    assert path.read_bytes() == b"image"
    assert artifact.sha256 == sha256(b"image").hexdigest()
    assert ResultStore(tmp / "results", quota_bytes=1 << 20).artifacts("alice", "t1") == (artifact,)


def test_a_draft_that_is_left_leaves_nothing(tmp: Path) -> None:
    store = ResultStore(tmp / "results", quota_bytes=1 << 20)
    with pytest.raises(RuntimeError), store.draft("alice", "t1") as draft:
        draft.write("firmware.bin", "image", b"image")
        raise RuntimeError
    assert not [path for path in (tmp / "results").rglob("*") if path.is_file()]


def test_drafts_of_an_agent_that_died_are_gone(tmp: Path) -> None:
    store = ResultStore(tmp / "results", quota_bytes=1 << 20)
    store.draft("alice", "t1").write("firmware.bin", "image", b"image")
    ResultStore(tmp / "results", quota_bytes=1 << 20)
    assert not [path for path in (tmp / "results").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\n", "a b"])
def test_names_that_are_none_are_refused(tmp: Path, name: str) -> None:
    draft = ResultStore(tmp / "results", quota_bytes=1 << 20).draft("alice", "t1")
    with pytest.raises(ValueError, match="name"):
        draft.write(name, "image", b"")


def test_results_used_least_recently_make_room(tmp: Path) -> None:
    store = ResultStore(tmp / "results", quota_bytes=400_000)
    keep(store, "old", os.urandom(100_000), age_s=2000)
    keep(store, "used", os.urandom(100_000), age_s=3000)
    store.artifacts("alice", "used")
    keep(store, "new", os.urandom(250_000))
    assert store.artifacts("alice", "used")
    with pytest.raises(TaskNotFound):
        store.artifacts("alice", "old")


def test_a_result_beyond_the_quota_is_refused(tmp: Path) -> None:
    store = ResultStore(tmp / "results", quota_bytes=100_000)
    with pytest.raises(DiskFull):
        keep(store, "t1", os.urandom(200_000))
    with pytest.raises(TaskNotFound):
        store.artifacts("alice", "t1")


def test_a_bundle_of_the_same_files_is_the_same_bytes(tmp: Path) -> None:
    (tmp / "a").write_bytes(b"a" * 1000)
    (tmp / "b").write_bytes(b"b")
    write_bundle(tmp / "1.tar.gz", [tmp / "a", tmp / "b"])
    os.utime(tmp / "a", (1, 1))
    (tmp / "b").chmod(0o600)
    write_bundle(tmp / "2.tar.gz", [tmp / "a", tmp / "b"])
    assert (tmp / "1.tar.gz").read_bytes() == (tmp / "2.tar.gz").read_bytes()


def test_a_log_has_a_bound_and_says_that_it_was_cut(tmp: Path) -> None:
    with LogFile(tmp / "log") as log:
        for _ in range(MAX_LOG_BYTES // (1 << 20) + 3):
            log.append(bytes(1 << 20))
        log.move_to(tmp / "build.log")
        log.append(b"too late")
    assert (tmp / "build.log").stat().st_size < MAX_LOG_BYTES + 100
    assert (tmp / "build.log").read_bytes().endswith(b"not kept]\r\n")
