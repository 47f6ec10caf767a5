"""What a client sends: planned, packed, verified, kept apart for each identity."""

from __future__ import annotations

import os
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_agent.source import SourceStore
from aegis_protocol.failures.http import BadRequest
from aegis_protocol.failures.source import (
    DiskFull,
    PathUnsafe,
    SourceTooLarge,
    SymlinkUnsafe,
    UploadIncomplete,
)
from aegis_protocol.source import MAX_FILE_BYTES, SourceFile, SourcePlan
from build_stand import pack_of, plan_of, upload

FILES = {"a.c": b"int a;\n", "b.c": b"int b;\n" * 1000, "lib/empty.h": b"", "same.c": b"int a;\n"}


@pytest.fixture
def store(tmp: Path) -> SourceStore:
    return SourceStore(tmp / "source", quota_bytes=1 << 30)


async def test_a_first_plan_lacks_each_content_once(store: SourceStore) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    assert planned.missing == (True, True, True)
    assert planned.missing_count == 3
    assert planned.missing_bytes == 7 + 7000


async def test_after_a_push_nothing_is_missing(store: SourceStore, tmp: Path) -> None:
    await upload(store, "alice", plan_of(FILES), FILES, tmp)
    assert (await store.plan("alice", plan_of(FILES))).missing_count == 0


async def test_a_push_may_be_deflated(store: SourceStore, tmp: Path) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    pack = tmp / "pack"
    pack.write_bytes(zlib.compress(pack_of(planned, FILES)))
    whole = await store.push("alice", planned, pack, "deflate")
    assert whole.missing_count == 0
    assert whole.plan_id == planned.plan_id


async def test_only_what_changed_is_missing_next_time(store: SourceStore, tmp: Path) -> None:
    await upload(store, "alice", plan_of(FILES), FILES, tmp)
    changed = {**FILES, "b.c": b"int c;\n"}
    planned = await store.plan("alice", plan_of(changed))
    assert [blob.path for blob in planned.missing_blobs] == ["b.c"]


async def test_an_identity_learns_nothing_of_what_another_sent(
    store: SourceStore, tmp: Path
) -> None:
    await upload(store, "alice", plan_of(FILES), FILES, tmp)
    assert (await store.plan("bob", plan_of(FILES))).missing_count == 3


async def test_an_identity_with_a_path_for_a_name_stays_in_the_store(
    store: SourceStore, tmp: Path
) -> None:
    await upload(store, "..", plan_of(FILES), FILES, tmp)
    assert {entry.name for entry in tmp.iterdir()} == {"source"}


@pytest.mark.parametrize("compression", ["none", "deflate"])
async def test_of_a_cut_pack_what_arrived_is_kept(
    store: SourceStore, tmp: Path, compression: str
) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    raw = pack_of(planned, FILES)
    pack = tmp / "pack"
    pack.write_bytes(raw[:-10] if compression == "none" else zlib.compress(raw)[:-8])
    if compression == "deflate":
        pack.write_bytes(zlib.compress(raw, level=0)[:-1000])
    with pytest.raises(UploadIncomplete):
        await store.push("alice", planned, pack, compression)
    again = await store.plan("alice", plan_of(FILES))
    assert [blob.path for blob in again.missing_blobs] == ["b.c", "lib/empty.h"]
    assert not list((tmp / "source").rglob("part-*"))


async def test_a_file_that_is_not_what_was_announced_is_not_kept(
    store: SourceStore, tmp: Path
) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    pack = tmp / "pack"
    pack.write_bytes(pack_of(planned, FILES).replace(b"int b", b"int x"))
    with pytest.raises(UploadIncomplete, match=r"b\.c"):
        await store.push("alice", planned, pack, "none")
    again = await store.plan("alice", plan_of(FILES))
    assert again.missing == (False, True, True)


async def test_a_pack_with_more_than_was_asked_for_is_refused(
    store: SourceStore, tmp: Path
) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    pack = tmp / "pack"
    pack.write_bytes(pack_of(planned, FILES) + b"more")
    with pytest.raises(UploadIncomplete, match="more than"):
        await store.push("alice", planned, pack, "none")


async def test_a_pack_that_unpacks_without_end_costs_no_more_than_was_planned(
    store: SourceStore, tmp: Path
) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    pack = tmp / "pack"
    pack.write_bytes(zlib.compress(pack_of(planned, FILES) + bytes(200 << 20)))
    with pytest.raises(UploadIncomplete, match="more than"):
        await store.push("alice", planned, pack, "deflate")
    used = sum(path.stat().st_size for path in (tmp / "source").rglob("*") if path.is_file())
    assert used < 100_000


async def test_a_pack_of_garbage_is_refused(store: SourceStore, tmp: Path) -> None:
    planned = await store.plan("alice", plan_of(FILES))
    pack = tmp / "pack"
    pack.write_bytes(b"this is no zlib stream at all")
    with pytest.raises(UploadIncomplete, match="unpacked"):
        await store.push("alice", planned, pack, "deflate")
    with pytest.raises(UploadIncomplete, match="zstd"):
        await store.push("alice", planned, pack, "zstd")


def _file(path: str, size_bytes: int = 1, digest: str = "0" * 64) -> SourceFile:
    return SourceFile(path=path, size_bytes=size_bytes, sha256=digest)


def _plan(*files: SourceFile) -> SourcePlan:
    return SourcePlan(project_id="p", installation_id="i", files=files)


async def test_unsafe_and_oversized_plans_are_refused(store: SourceStore) -> None:
    with pytest.raises(PathUnsafe):
        await store.plan("alice", _plan(_file("../x")))
    with pytest.raises(SymlinkUnsafe):
        await store.plan("alice", plan_of({"a": b""}, links={"out": "../../etc/passwd"}))
    with pytest.raises(SourceTooLarge):
        await store.plan("alice", _plan(_file("a", MAX_FILE_BYTES + 1)))
    with pytest.raises(SourceTooLarge):
        many = [_file(f"f{n}", MAX_FILE_BYTES, f"{n:064x}") for n in range(9)]
        await store.plan("alice", _plan(*many))
    with pytest.raises(PathUnsafe, match="deeper"):
        await store.plan("alice", _plan(_file("d/" * 100 + "f")))
    with pytest.raises(BadRequest, match="two sizes"):
        await store.plan("alice", _plan(_file("a", 1), _file("b", 2)))


async def test_what_was_used_least_recently_makes_room(tmp: Path) -> None:
    store = SourceStore(tmp / "source", quota_bytes=300_000)
    old, new = {"old": os.urandom(100_000)}, {"new": os.urandom(100_000)}
    await upload(store, "alice", plan_of(old), old, tmp)
    await upload(store, "alice", plan_of(new), new, tmp)
    for name, age_s in (("old", 2000), ("new", 1000)):
        data = (old | new)[name]
        (blob,) = (tmp / "source").rglob(sha256(data).hexdigest())
        os.utime(blob, (blob.stat().st_mtime - age_s,) * 2)
    more = {"more": os.urandom(150_000)}
    await upload(store, "alice", plan_of(more), more, tmp)
    assert (await store.plan("alice", plan_of(old))).missing_count == 1
    assert (await store.plan("alice", plan_of(new))).missing_count == 0


async def test_what_a_live_plan_needs_is_never_evicted(tmp: Path) -> None:
    store = SourceStore(tmp / "source", quota_bytes=300_000)
    files, more = {"a": os.urandom(200_000)}, {"b": os.urandom(200_000)}
    kept = await upload(store, "alice", plan_of(files), files, tmp)
    with pytest.raises(DiskFull):
        await upload(store, "alice", plan_of(more), more, tmp)
    assert kept.missing_count == 0
    assert (await store.plan("alice", plan_of(files))).missing_count == 0


async def test_what_a_crash_left_behind_is_gone_after_a_restart(tmp: Path) -> None:
    store = SourceStore(tmp / "source", quota_bytes=1 << 30)
    await upload(store, "alice", plan_of(FILES), FILES, tmp)
    (identity,) = (tmp / "source/blobs").iterdir()
    (identity / "part-cut").write_bytes(b"half")
    (tmp / "source/scratch/left").mkdir()
    again = SourceStore(tmp / "source", quota_bytes=1 << 30)
    assert not (identity / "part-cut").exists()
    assert not list((tmp / "source/scratch").iterdir())
    assert (await again.plan("alice", plan_of(FILES))).missing_count == 0
