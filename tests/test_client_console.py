"""What a console must show, found in bytes that are cut anywhere."""

from __future__ import annotations

import pytest
from aegis_client.console_text import ConsoleText
from aegis_client.expect import WINDOW_CHARS, ConsoleWatch
from aegis_client.failures import UsageInvalid
from aegis_client.run_project import prove
from aegis_client.timestamps import Timestamps

LINE = "I (12) \x1b[0;32mmain\x1b[0m: hello from Zürich\r\n".encode()
ELF = "0123456789abcdef" * 4


def fed(watch: ConsoleWatch, data: bytes, size: int) -> list[str]:
    pieces = [data[n : n + size] for n in range(0, len(data), size)]
    return [match.text for piece in pieces if (match := watch.feed(piece))]


@pytest.mark.parametrize("size", range(1, len(LINE) + 1))
def test_a_match_does_not_depend_on_where_the_bytes_were_cut(size: int) -> None:
    found = fed(ConsoleWatch(r"^I \(12\) main: hello from Zürich$"), LINE + b"\r\n", size)
    assert found[0] == "I (12) main: hello from Zürich"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_colours_and_line_ends_are_not_text(size: int) -> None:
    text = ConsoleText()
    data = b"\x1b[1;31mred\x1b[0m\r\na\rb\n\x1b]0;title\x07c\xff\x1b(d"
    pieces = [data[n : n + size] for n in range(0, len(data), size)]
    assert "".join(text.feed(piece) for piece in pieces).startswith("red\na\nb\nc\ufffd")


def test_an_escape_that_never_ends_does_not_hold_the_text_back_for_ever() -> None:
    text = ConsoleText()
    assert "the end" in text.feed(b"\x1b[" + b"0" * 1000 + b"\nthe end")


def test_what_comes_first_decides() -> None:
    watch = ConsoleWatch("ready", ["panic"])
    match = watch.feed(b"panic, then ready\n")
    assert match is not None
    assert (match.expected, match.pattern) == (False, "panic")
    match = ConsoleWatch("ready", ["panic"]).feed(b"ready, then panic\n")
    assert match is not None
    assert match.expected


def test_old_text_is_let_go() -> None:
    watch = ConsoleWatch("begin.*end")
    assert watch.feed(b"begin " + b"x" * 2 * WINDOW_CHARS) is None
    assert watch.feed(b" end\n") is None


def test_a_pattern_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageInvalid, match="--expect"):
        ConsoleWatch("(")
    with pytest.raises(UsageInvalid, match="--fail"):
        ConsoleWatch(None, ["["])


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("line", "digest"),
    [
        (f"I (5) app_init: ELF file SHA256:  {ELF[:9]}...\r\n", ELF[:9]),
        (f"ELF SHA-256: {ELF}\n", ELF),
    ],
)
def test_the_elfs_digest_is_read_whole(line: str, digest: str, size: int) -> None:
    watch = ConsoleWatch()
    fed(watch, line.encode() + b"next\n", size)
    assert watch.elf_sha256 == digest


def test_a_proof_compares_what_was_printed() -> None:
    assert prove(ELF, ELF[:9]).status == "equal"
    assert prove(ELF, ELF).status == "equal"
    assert prove(ELF, "f" * 9).status == "differs"
    assert prove(ELF, None).status == "not_printed"
    assert prove(None, ELF).status == "unknown"


def test_each_line_gets_the_time_of_its_first_byte() -> None:
    now = iter([0.25, 1.25, 2.25])
    stamps = Timestamps(lambda: next(now))
    out = b"".join(stamps.feed(piece) for piece in (b"one\r\ntw", b"o\r\n", b"three"))
    lines = out.split(b"\r\n")
    assert [line[6:] for line in lines] == [b"00.250 one", b"00.250 two", b"02.250 three"]
