"""Reading a project: what is taken, what stays at home, what is refused, and what is packed."""

from __future__ import annotations

import os
import socket
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from aegis_client.config import ClientConfig
from aegis_client.failures import SourceUnreadable
from aegis_client.project import Project, project_root, scan
from aegis_client.store import Store
from aegis_client.upload import write_pack
from aegis_protocol import source
from aegis_protocol.failures.source import (
    PathUnsafe,
    SourceChanged,
    SourceNotFound,
    SourceTooLarge,
    SymlinkUnsafe,
)
from aegis_protocol.source import unique_blobs


@pytest.fixture
def store(tmp: Path) -> Store:
    return Store.open(ClientConfig(store=tmp / "store"))


@pytest.fixture
def root(tmp: Path) -> Path:
    (tmp / "project").mkdir()
    return project_root(tmp / "project")


def put(root: Path, *paths: str, text: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def paths(project: Project) -> list[str]:
    return [file.path for file in project.plan.files]


def test_files_are_listed_with_digest_size_and_whether_they_run(root: Path, store: Store) -> None:
    put(root, "platformio.ini", "src/main.c", text="hello")
    put(root, "tool.sh")
    (root / "tool.sh").chmod(0o755)
    project = scan(root, store)
    assert paths(project) == ["platformio.ini", "src/main.c", "tool.sh"]
    first, _, tool = project.plan.files
    assert (first.size_bytes, first.sha256) == (5, sha256(b"hello").hexdigest())
    assert (first.executable, tool.executable) == (False, True)
    assert project.size_bytes == 11


def test_the_projects_id_is_made_once_and_stays_at_home(root: Path, store: Store) -> None:
    put(root, "a")
    first, second = scan(root, store), scan(root, store)
    assert first.id == second.id
    assert first.plan.installation_id == store.installation_id()
    assert paths(second) == ["a"]
    assert (root / ".aegis" / ".gitignore").read_text() == "*\n"


def test_a_project_in_a_folder_that_cannot_be_written_has_an_id_all_the_same(
    root: Path, store: Store
) -> None:
    put(root, "a")
    (root / ".aegis").symlink_to("/nowhere")
    assert scan(root, store).id == scan(root, store).id
    assert store.names("projects")


def test_the_ignore_files_of_every_folder_hold_below_it(root: Path, store: Store) -> None:
    put(root, ".gitignore", text="*.log\n/build/\n!keep.log\n")
    put(root, "src/.gitignore", text="generated.c\n!important.log\n")
    put(root, "a.log", "keep.log", "build/x", "src/build/y", "src/generated.c", "generated.c")
    put(root, "src/important.log", "src/other.log")
    assert paths(scan(root, store)) == [
        ".gitignore",
        "generated.c",
        "keep.log",
        "src/.gitignore",
        "src/build/y",
        "src/important.log",
    ]


def test_aegisignore_comes_after_gitignore_and_may_take_back_in(root: Path, store: Store) -> None:
    put(root, ".gitignore", text="secrets.h\n")
    put(root, ".aegisignore", text="!secrets.h\ndocs/\n")
    put(root, "secrets.h", "docs/manual.pdf", "main.c")
    assert paths(scan(root, store)) == [".aegisignore", ".gitignore", "main.c", "secrets.h"]


def test_in_a_repository_the_rules_above_the_project_hold_too(tmp: Path, store: Store) -> None:
    put(tmp, "repo/.git/HEAD", "repo/fw/app/main.c", "repo/fw/app/a.log", "repo/fw/app/keep.log")
    put(tmp, "repo/fw/app/out/x.bin", "repo/fw/app/gen/y.c", "repo/fw/app/src/gen/z.c")
    put(tmp, "repo/.gitignore", text="*.log\n/fw/app/out/\n/gen/\n")
    put(tmp, "repo/fw/.gitignore", text="!keep.log\napp/gen\n")
    put(tmp, ".gitignore", text="main.c\n")
    root = project_root(tmp / "repo/fw/app")
    assert paths(scan(root, store)) == ["keep.log", "main.c", "src/gen/z.c"]


def test_rules_that_ignore_the_project_itself_are_not_meant_for_it(tmp: Path, store: Store) -> None:
    put(tmp, "repo/.git/HEAD", "repo/scratch/app/main.c", "repo/scratch/app/main.o")
    put(tmp, "repo/.gitignore", text="scratch/\n*.o\n")
    assert paths(scan(project_root(tmp / "repo/scratch/app"), store)) == ["main.c", "main.o"]


def test_rules_above_a_project_that_is_a_repository_do_not_hold(tmp: Path, store: Store) -> None:
    put(tmp, "outer/.git/HEAD", "outer/app/.git/HEAD", "outer/app/main.c")
    put(tmp, "outer/.gitignore", text="*.c\n")
    assert paths(scan(project_root(tmp / "outer/app"), store)) == ["main.c"]


def test_history_and_build_output_never_travel(root: Path, store: Store) -> None:
    put(root, ".git/config", ".pio/build/x.bin", "lib/x/.git", "lib/x/.pio/y", "main.c")
    put(root, ".gitignore", text="!.git\n!.pio\n")
    assert paths(scan(root, store)) == [".gitignore", "main.c"]


def test_links_inside_are_kept_as_links(root: Path, store: Store) -> None:
    put(root, "src/main.c")
    (root / "alias.c").symlink_to("src/main.c")
    (root / "src" / "up").symlink_to("../src")
    (root / "src" / "dangling").symlink_to("not-there")
    project = scan(root, store)
    assert {link.path: link.target for link in project.plan.links} == {
        "alias.c": "src/main.c",
        "src/dangling": "not-there",
        "src/up": "../src",
    }
    assert paths(project) == ["src/main.c"]


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "a/../../outside"])
def test_a_link_that_leads_out_is_refused_by_name(root: Path, store: Store, target: str) -> None:
    (root / "out").symlink_to(target)
    with pytest.raises(SymlinkUnsafe, match="out") as caught:
        scan(root, store)
    assert caught.value.remedy
    put(root, ".aegisignore", text="out\n")
    assert paths(scan(root, store)) == [".aegisignore"]


def test_a_link_that_leads_out_through_another_link_is_refused(root: Path, store: Store) -> None:
    (root / "here").symlink_to(".")
    (root / "out").symlink_to("here/../x")
    with pytest.raises(SymlinkUnsafe, match="out"):
        scan(root, store)


@pytest.mark.parametrize("name", [b"bad-\xff.c", b"new\nline.c", b"back\\slash.c", b"\x1b[31m"])
def test_a_name_in_odd_bytes_is_refused_in_words_that_can_be_printed(
    root: Path, store: Store, name: bytes
) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_text("x")
    with pytest.raises(PathUnsafe) as caught:
        scan(root, store)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


def test_a_folder_in_odd_bytes_is_refused_too(root: Path, store: Store) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xfe")).mkdir()
    with pytest.raises(PathUnsafe):
        scan(root, store)


def test_what_is_no_file_is_passed_over(root: Path, store: Store) -> None:
    put(root, "a")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        assert paths(scan(root, store)) == ["a"]


def test_no_folder_and_a_file_are_no_project(tmp: Path) -> None:
    put(tmp, "file")
    for folder in (tmp / "nothing", tmp / "file"):
        with pytest.raises(SourceNotFound):
            project_root(folder)


def test_too_many_files_and_too_large_ones_are_refused(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aegis_client import project

    put(root, "a", "b", "c", text="12345")
    monkeypatch.setattr(project, "MAX_FILES", 2)
    with pytest.raises(SourceTooLarge):
        scan(root, store)
    monkeypatch.setattr(project, "MAX_FILES", source.MAX_FILES)
    monkeypatch.setattr(project, "MAX_FILE_BYTES", 4)
    with pytest.raises(SourceTooLarge, match="a is larger"):
        scan(root, store)


def test_a_file_that_cannot_be_read_is_named(root: Path, store: Store) -> None:
    put(root, "a")
    (root / ".gitignore").mkdir()
    assert paths(scan(root, store)) == ["a"], "a folder of that name is no list of rules"
    project = scan(root, store)
    (root / "a").unlink()
    with pytest.raises(SourceUnreadable, match="a: "):
        b"".join(project.read(project.plan.files[0]))


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_a_pack_is_the_blobs_one_after_the_other(
    root: Path, store: Store, tmp: Path, compression: str
) -> None:
    put(root, "a", text="first")
    put(root, "b", text="second" * 1000)
    put(root, "c", text="first")
    put(root, "empty", text="")
    project = scan(root, store)
    blobs = unique_blobs(project.plan.files)
    digest = write_pack(project, blobs, tmp / "pack", compression)  # type: ignore[arg-type]
    packed = (tmp / "pack").read_bytes()
    assert digest == sha256(packed).hexdigest()
    plain = zlib.decompress(packed) if compression == "deflate" else packed
    assert plain == b"first" + b"second" * 1000


@pytest.mark.parametrize("text", ["y", "longer", ""])
def test_a_file_that_changed_since_it_was_listed_is_not_packed(
    root: Path, store: Store, tmp: Path, text: str
) -> None:
    put(root, "a", text="x")
    project = scan(root, store)
    put(root, "a", text=text)
    with pytest.raises(SourceChanged):
        write_pack(project, project.plan.files, tmp / "pack", "none")


def test_a_file_that_became_a_link_is_not_followed(root: Path, store: Store, tmp: Path) -> None:
    put(root, "a", text="x")
    project = scan(root, store)
    (root / "a").unlink()
    (root / "a").symlink_to("/etc/hostname")
    with pytest.raises(SourceUnreadable):
        write_pack(project, project.plan.files, tmp / "pack", "none")
