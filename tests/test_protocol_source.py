"""Paths of a project: what stays inside passes, everything else is named and refused."""

from __future__ import annotations

import pytest
from aegis_protocol.failures.source import PathUnsafe, SymlinkUnsafe
from aegis_protocol.source import (
    MAX_PATH_BYTES,
    SourceFile,
    SourceLink,
    SourcePlan,
    check_plan,
    checked_link,
    checked_path,
    pack_bitmap,
    plan_digest,
    unique_blobs,
    unpack_bitmap,
)

A, B = "a" * 64, "b" * 64


def plan(*files: str, links: dict[str, str] | None = None) -> SourcePlan:
    return SourcePlan(
        project_id="p",
        installation_id="i",
        files=tuple(SourceFile(path=path, size_bytes=1, sha256=A) for path in files),
        links=tuple(SourceLink(path=p, target=t) for p, t in (links or {}).items()),
    )


@pytest.mark.parametrize(
    "path",
    [
        "platformio.ini",
        "src/main.c",
        ".gitignore",
        "..hidden/...",
        "a b/c d.txt",
        "src/größe.c",
        "src/gro\u0308ße.c",
        "日本語/主.c",
        "-rf",
        "C:/x",
        "a" * 255,
        "/".join(["abcdefghi"] * 102),
    ],
)
def test_an_ordinary_path_passes_as_it_is(path: str) -> None:
    assert checked_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "//server/share",
        "..",
        ".",
        "../up",
        "src/../../up",
        "src/..",
        "./src",
        "src/./main.c",
        "src//main.c",
        "src/",
        "src\\main.c",
        "..\\up",
        "a\0b",
        "a\nb",
        "a\x1b[31mb",
        "a\x7fb",
        "a\x85b",
        "odd\udcff.c",
        "a" * 256,
        "é" * 128,
        "/".join(["abcdefghi"] * 103),
    ],
)
def test_a_hostile_path_is_refused_and_shown_harmlessly(path: str) -> None:
    with pytest.raises(PathUnsafe) as refused:
        checked_path(path)
    shown = str(refused.value.facts["path"])
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 300
    refused.value.body().model_dump_json().encode()


def test_the_longest_path_is_counted_in_bytes() -> None:
    part = "é" * 127
    assert checked_path("/".join([part] * 4))
    with pytest.raises(PathUnsafe, match=f"{MAX_PATH_BYTES} bytes"):
        checked_path("/".join([part] * 5))


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("link", "main.c"),
        ("src/link", "../lib/x"),
        ("a/b/link", "../../c"),
        ("link", "."),
        ("src/link", ".."),
        ("link", "a/../b"),
        ("link", "folder/"),
    ],
)
def test_a_link_that_stays_inside_passes(path: str, target: str) -> None:
    assert checked_link(path, target) == target


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("link", ".."),
        ("link", "../x"),
        ("src/link", "../../etc/passwd"),
        ("src/link", "a/../../../x"),
        ("link", "/etc/passwd"),
        ("link", "/"),
        ("link", ""),
        ("link", "a\0b"),
        ("link", "a\\..\\b"),
        ("link", "odd\udcff"),
    ],
)
def test_a_link_that_leads_out_is_refused(path: str, target: str) -> None:
    with pytest.raises(SymlinkUnsafe):
        checked_link(path, target)


def test_a_link_itself_lies_at_a_safe_path() -> None:
    with pytest.raises(PathUnsafe):
        checked_link("../link", "x")


@pytest.mark.parametrize(
    "bad",
    [
        plan("a", "a"),
        plan("a", links={"a": "b"}),
        plan("a", "a/b"),
        plan("a/b/c/d", "a/b"),
        plan("link/passwd", links={"link": "lib"}),
        plan("ok", "../up"),
        plan("ok", links={"../link": "ok"}),
    ],
    ids=["twice", "file and link", "below a file", "far below", "below a link", "out", "link out"],
)
def test_a_plan_in_which_one_path_undoes_another_is_refused(bad: SourcePlan) -> None:
    with pytest.raises(PathUnsafe):
        check_plan(bad)


def test_a_plan_whose_link_leads_out_is_refused() -> None:
    with pytest.raises(SymlinkUnsafe):
        check_plan(plan("a", links={"link": "../../x"}))


def test_a_link_that_goes_back_through_another_link_is_refused() -> None:
    """Lexically `here/../x` is `x`; on a disk it is the folder above the project."""
    links = (SourceLink(path="here", target="."), SourceLink(path="out", target="here/../x"))
    with pytest.raises(SymlinkUnsafe):
        check_plan(SourcePlan(project_id="p", installation_id="i", files=(), links=links))


def test_a_plain_plan_passes() -> None:
    check_plan(plan("a", "b/c", "b/d", links={"b/link": "c", "bc": "b/c"}))


def test_the_digest_of_a_plan_is_of_its_content_alone() -> None:
    one = plan("a", "b", links={"l": "a", "m": "b"})
    turned = SourcePlan(
        project_id="other", installation_id="other", files=one.files[::-1], links=one.links[::-1]
    )
    assert plan_digest(one) == plan_digest(turned)
    file, rest = one.files[0], one.files[1:]
    for change in ({"executable": True}, {"sha256": B}, {"path": "c"}):
        changed = one.model_copy(update={"files": (file.model_copy(update=change), *rest)})
        assert plan_digest(changed) != plan_digest(one)
    retargeted = one.model_copy(update={"links": (SourceLink(path="l", target="b"), one.links[1])})
    assert plan_digest(retargeted) != plan_digest(one)


def test_a_digest_that_two_files_share_is_sent_once() -> None:
    files = [SourceFile(path=p, size_bytes=1, sha256=d) for p, d in [("x", A), ("y", B), ("z", A)]]
    assert [file.path for file in unique_blobs(files)] == ["x", "y"]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 65])
def test_a_bitmap_comes_back_as_it_was(count: int) -> None:
    bits = [n % 3 == 0 for n in range(count)]
    assert unpack_bitmap(pack_bitmap(bits), count) == bits


def test_a_bitmap_begins_with_the_least_significant_bit() -> None:
    assert pack_bitmap([True, False, True] + [False] * 6 + [True]) == b"\x05\x02"


@pytest.mark.parametrize(("data", "count"), [(b"", 1), (b"\0\0", 8), (b"\0", 9), (b"\0", 0)])
def test_a_bitmap_of_the_wrong_length_is_refused(data: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="wrong length"):
        unpack_bitmap(data, count)
