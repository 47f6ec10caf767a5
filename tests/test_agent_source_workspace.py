"""Workspaces: warm, exact, locked, and safe from what the last build planted."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from aegis_agent.disk.trees import remove_tree
from aegis_agent.source import Owner, SourceStore, Workspace
from aegis_protocol.failures.source import UploadIncomplete, WorkspaceBusy
from build_stand import build_uid, plan_of, upload

KEEP = frozenset({".pio"})
FILES = {"platformio.ini": b"[env:a]\n", "src/main.c": b"int main;\n", "src/b.c": b"int b;\n"}
OWNER = Owner(build_uid(), build_uid()) if os.geteuid() == 0 else None


@pytest.fixture
def store(tmp: Path) -> SourceStore:
    return SourceStore(tmp / "source", quota_bytes=1 << 30)


async def opened(store: SourceStore, tmp: Path, files: dict[str, bytes]) -> Workspace:
    planned = await upload(store, "alice", plan_of(files), files, tmp)
    return await store.workspace("alice", planned)


async def synced(
    store: SourceStore, tmp: Path, files: dict[str, bytes], **options: object
) -> Workspace:
    """The workspace after a sync, closed again."""
    planned = await upload(store, "alice", plan_of(files, **options), files, tmp)  # type: ignore[arg-type]
    with await store.workspace("alice", planned) as workspace:
        workspace.sync(planned.plan, keep=KEEP, owner=OWNER)
    return workspace


async def test_a_workspace_holds_the_plan_and_nothing_else(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(
        store, tmp, FILES, links={"main.c": "src/main.c"}, executable=frozenset({"src/b.c"})
    )
    found = {
        str(path.relative_to(workspace.project)): path.read_bytes()
        for path in workspace.project.rglob("*")
        if path.is_file()
    }
    assert found == {**FILES, "main.c": FILES["src/main.c"]}
    assert (workspace.project / "main.c").is_symlink()
    assert stat.S_IMODE((workspace.project / "src/b.c").stat().st_mode) == 0o755
    assert stat.S_IMODE((workspace.project / "src/main.c").stat().st_mode) == 0o644


async def test_nothing_in_a_workspace_is_a_hard_link_of_what_is_stored(
    store: SourceStore, tmp: Path
) -> None:
    workspace = await synced(store, tmp, FILES)
    for path in workspace.project.rglob("*"):
        assert path.is_dir() or path.stat().st_nlink == 1


@pytest.mark.requires("root")
async def test_all_of_a_workspace_belongs_to_the_builds_user(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(store, tmp, FILES, links={"l": "src"})
    for path in [workspace.project, *workspace.project.rglob("*")]:
        assert path.lstat().st_uid == build_uid()
    assert stat.S_IMODE(workspace.folder.stat().st_mode) == 0o700
    assert workspace.folder.stat().st_uid == 0


@pytest.mark.requires("root")
async def test_what_another_slot_built_is_handed_over(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(store, tmp, FILES)
    built = workspace.project / ".pio/build"
    built.mkdir(parents=True)
    (built / "main.o").write_bytes(b"o")
    (built / "out").symlink_to("/etc/passwd")
    planned = await store.plan("alice", plan_of(FILES))
    with await store.workspace("alice", planned) as again:
        again.sync(planned.plan, keep=KEEP, owner=Owner(65_111, 65_111))
    assert {p.lstat().st_uid for p in workspace.project.rglob("*")} == {65_111}
    assert Path("/etc/passwd").stat().st_uid == 0


async def test_unchanged_files_keep_their_times_and_changed_ones_are_new(
    store: SourceStore, tmp: Path
) -> None:
    workspace = await synced(store, tmp, FILES)
    before = {name: (workspace.project / name).stat() for name in FILES}
    await synced(store, tmp, {**FILES, "src/b.c": b"int c;\n"})
    after = {name: (workspace.project / name).stat() for name in FILES}
    for name in ("platformio.ini", "src/main.c"):
        assert after[name].st_mtime_ns == before[name].st_mtime_ns
        assert after[name].st_ino == before[name].st_ino
    assert after["src/b.c"].st_ino != before["src/b.c"].st_ino
    assert (workspace.project / "src/b.c").read_bytes() == b"int c;\n"


async def test_removed_files_go_and_what_builds_made_stays(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(store, tmp, FILES)
    for name in (".pio/build/x.o", "src/generated.c", "stray/file"):
        path = workspace.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"made")
    await synced(store, tmp, {name: FILES[name] for name in ("platformio.ini", "src/main.c")})
    left = {str(p.relative_to(workspace.project)) for p in workspace.project.rglob("*")}
    assert left == {
        ".pio", ".pio/build", ".pio/build/x.o", "platformio.ini", "src", "src/main.c",
    }  # fmt: skip


async def test_a_file_that_the_build_rewrote_is_restored(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(store, tmp, FILES)
    path = workspace.project / "src/main.c"
    times = path.stat()
    path.write_bytes(b"int evil;\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    await synced(store, tmp, FILES)
    assert path.read_bytes() == FILES["src/main.c"]


async def test_links_planted_in_a_workspace_lead_nowhere(store: SourceStore, tmp: Path) -> None:
    outside = tmp / "outside"
    outside.mkdir()
    (outside / "main.c").write_bytes(b"precious")
    (outside / "secret").write_bytes(b"precious")
    workspace = await synced(store, tmp, FILES)
    project = workspace.project
    (project / "platformio.ini").unlink()
    (project / "platformio.ini").symlink_to(outside / "secret")
    remove_tree(project / "src")
    (project / "src").symlink_to(outside)
    (project / ".pio").symlink_to(outside)
    changed = {**FILES, "platformio.ini": b"[env:b]\n", "src/main.c": b"int new;\n"}
    await synced(store, tmp, changed)
    assert {p.name: p.read_bytes() for p in outside.iterdir()} == {
        "main.c": b"precious", "secret": b"precious",
    }  # fmt: skip
    assert outside.stat().st_uid == os.getuid()
    assert not (project / "src").is_symlink()
    assert (project / "platformio.ini").read_bytes() == b"[env:b]\n"
    assert not (project / "platformio.ini").is_symlink()


async def test_what_lies_in_the_way_of_a_file_gives_way(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(store, tmp, FILES)
    (workspace.project / "platformio.ini").unlink()
    (workspace.project / "platformio.ini/below").mkdir(parents=True)
    (workspace.project / "src/main.c").unlink()
    os.mkfifo(workspace.project / "src/main.c")
    (workspace.project / "src/b.c").unlink()
    os.link(workspace.project / "src/main.c", workspace.project / "src/b.c")
    await synced(store, tmp, FILES)
    assert {n: (workspace.project / n).read_bytes() for n in FILES} == FILES


async def test_folders_without_rights_and_without_end_are_removed(
    store: SourceStore, tmp: Path
) -> None:
    workspace = await synced(store, tmp, FILES)
    at = os.open(workspace.project, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", 0o700, dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.mkdir("closed", 0, dir_fd=at)
    os.close(at)
    (workspace.project / "src/closed").mkdir(mode=0)
    await synced(store, tmp, FILES)
    assert sorted(p.name for p in workspace.project.iterdir()) == ["platformio.ini", "src"]
    assert sorted(p.name for p in (workspace.project / "src").iterdir()) == ["b.c", "main.c"]


async def test_a_kept_tree_without_end_is_cut(store: SourceStore, tmp: Path) -> None:
    workspace = await synced(store, tmp, FILES)
    (workspace.project / ".pio").mkdir()
    at = os.open(workspace.project / ".pio", os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", 0o700, dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    await synced(store, tmp, FILES)
    remove_tree(workspace.project)
    assert not workspace.project.exists()


async def test_a_workspace_has_one_build_at_a_time(store: SourceStore, tmp: Path) -> None:
    first = await opened(store, tmp, FILES)
    planned = await store.plan("alice", plan_of(FILES))
    assert store.busy("alice", planned.plan)
    with pytest.raises(WorkspaceBusy):
        await store.workspace("alice", planned)
    with pytest.raises(WorkspaceBusy):
        await store.workspace("alice", planned, wait_s=0.2)
    first.close()
    assert not store.busy("alice", planned.plan)
    (await store.workspace("alice", planned)).close()


async def test_identities_and_projects_have_workspaces_of_their_own(
    store: SourceStore, tmp: Path
) -> None:
    folders = set()
    for identity, project in (("alice", "p1"), ("alice", "p2"), ("bob", "p1")):
        plan = plan_of(FILES, project_id=project)
        planned = await upload(store, identity, plan, FILES, tmp)
        with await store.workspace(identity, planned) as workspace:
            folders.add(workspace.folder)
    assert len(folders) == 3


async def test_an_idle_workspace_makes_room_and_a_busy_one_does_not(tmp: Path) -> None:
    store = SourceStore(tmp / "source", quota_bytes=400_000)
    workspace = await synced(store, tmp, FILES)
    busy = await upload(store, "bob", plan_of(FILES), FILES, tmp)
    held = await store.workspace("bob", busy)
    for one in (workspace, held):
        one.project.mkdir(exist_ok=True)
        (one.project / ".pio").mkdir()
        (one.project / ".pio/big").write_bytes(os.urandom(150_000))
    with await store.workspace("alice", await store.plan("alice", plan_of(FILES))):
        pass  # closing it takes its measure
    more = {"more": os.urandom(200_000)}
    await upload(store, "carol", plan_of(more), more, tmp)
    assert not workspace.folder.exists()
    assert held.folder.exists()
    held.close()


async def test_a_blob_that_the_disk_spoilt_is_asked_for_again(
    store: SourceStore, tmp: Path
) -> None:
    planned = await upload(store, "alice", plan_of(FILES), FILES, tmp)
    blob = planned.blobs[1]
    (stored,) = (tmp / "source/blobs").rglob(blob.sha256)
    stored.write_bytes(bytes(blob.size_bytes))
    with await store.workspace("alice", planned) as workspace, pytest.raises(UploadIncomplete):
        workspace.sync(planned.plan, keep=KEEP, owner=OWNER)
    again = await store.plan("alice", plan_of(FILES))
    assert [one.path for one in again.missing_blobs] == [blob.path]
