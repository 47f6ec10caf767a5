"""Reading compilers: text as it comes from a terminal in, diagnostics, phases and verdicts out."""

from __future__ import annotations

import pytest
from aegis_agent.build.diagnostics import MAX_DIAGNOSTICS, DiagnosticReader
from aegis_agent.build.lines import LINE_BYTES, EscapeFilter, LineReader
from aegis_agent.build.reading import OutputReading
from aegis_agent.build.verdict import verdict
from aegis_protocol.failures.build import BuildFailed, BuildTooLarge
from aegis_protocol.failures.toolchain import EnvironmentUnknown, PackageMissing
from aegis_protocol.manifest import Diagnostic


def read(text: str) -> list[Diagnostic]:
    reader = DiagnosticReader()
    for line in text.splitlines():
        reader.line(line)
    return reader.found


def reading(text: str) -> OutputReading:
    found = OutputReading(lambda *_, **__: None)
    found.feed(text.encode())
    found.end()
    return found


def test_gcc_messages_have_place_severity_and_flag() -> None:
    assert read(
        "src/main.c: In function 'app_main':\n"
        "src/main.c:9:12: error: 'reading' undeclared (first use in this function)\n"
        "    9 |     return reading * scale;\n"
        "      |            ^~~~~~~\n"
        "src/main.c:9:12: note: each undeclared identifier is reported only once\n"
        "lib/x/a.cpp:10:1: warning: control reaches end [-Wreturn-type]\n"
        "src/b.c:3: error: no column here\n"
        "/project/src/c d.c:1:2: fatal error: stop\n"
    ) == [
        Diagnostic(
            severity="error", file="src/main.c", line=9, column=12,
            message="'reading' undeclared (first use in this function)",
        ),
        Diagnostic(
            severity="note", file="src/main.c", line=9, column=12,
            message="each undeclared identifier is reported only once",
        ),
        Diagnostic(
            severity="warning", file="lib/x/a.cpp", line=10, column=1,
            message="control reaches end", flag="-Wreturn-type",
        ),
        Diagnostic(severity="error", file="src/b.c", line=3, message="no column here"),
        Diagnostic(severity="error", file="src/c d.c", line=1, column=2, message="stop"),
    ]  # fmt: skip


def test_a_warning_made_an_error_keeps_its_flag() -> None:
    (found,) = read("a.c:1:1: error: unused variable 'x' [-Werror=unused-variable]\n")
    assert (found.severity, found.flag) == ("error", "-Werror=unused-variable")


def test_a_missing_header_has_a_hint_and_the_banner_adds_nothing() -> None:
    banner = (
        "\n***************\n"
        "* Looking for table.h dependency? Check our library registry!\n"
        "*\n"
        '* CLI  > platformio lib search "header:table.h"\n'
        "* Web  > https://registry.example/search?q=header:table.h\n"
        "*\n***************\n\n"
    )
    error = "src/a.c:6:10: fatal error: table.h: No such file or directory\n"
    (found,) = read(error + banner + '    6 | #include "table.h"\ncompilation terminated.\n')
    assert (found.file, found.line, found.column) == ("src/a.c", 6, 10)
    assert "table.h" in found.hint
    (alone,) = read(banner)
    assert alone.message == "table.h: No such file or directory"
    assert "table.h" in alone.hint


def test_linker_errors_are_errors() -> None:
    found = read(
        "/usr/lib/riscv64-unknown-elf/bin/ld: .pio/build/a/src/main.o: in function `.L0 ':\n"
        "./src/main.c:14: undefined reference to `absent'\n"
        "main.c:(.text.app_main+0x10): undefined reference to `gone'\n"
        "/usr/bin/../ld: .pio/build/a/src/b.o:/project/src/b.c:3: multiple definition of `x'\n"
        "/opt/bin/xtensa-esp32-elf-ld: cannot find -lmissing\n"
        "/x/ld: region `dram0_0_seg' overflowed by 1040 bytes\n"
        "/x/ld: warning: main.o has a LOAD segment with RWX permissions\n"
        "collect2: error: ld returned 1 exit status\n"
    )
    errors = [one for one in found if one.severity == "error"]
    assert [(one.file, one.line, one.message.split("`")[0].strip()) for one in errors] == [
        ("src/main.c", 14, "undefined reference to"),
        ("main.c", 0, "undefined reference to"),
        ("", 0, ".pio/build/a/src/b.o:/project/src/b.c:3: multiple definition of"),
        ("", 0, "cannot find -lmissing"),
        ("", 0, "region"),
    ]
    assert all(one.hint for one in errors if "b.c" not in one.message)


def test_tracebacks_of_scripts_are_errors_in_both_orders() -> None:
    scons = (
        "KeyError: 'x':\n"
        '  File "/opt/venv/platformio/builder/main.py", line 167:\n'
        "    env.SConscript()\n"
        '  File "/project/tools/gen.py", line 2:\n'
        "    helper()\n"
        '  File "/project/tools/helper.py", line 7:\n'
        "    raise KeyError('x')\n"
        "==== [FAILED] ====\n"
    )
    python = (
        "Traceback (most recent call last):\n"
        '  File "/project/tools/gen.py", line 5, in <module>\n'
        "    main()\n"
        "ValueError: bad\n"
    )
    assert [(one.file, one.line, one.message) for one in read(scons)] == [
        ("tools/helper.py", 7, "KeyError: 'x'")
    ]
    assert [(one.file, one.line, one.message) for one in read(python)] == [
        ("tools/gen.py", 5, "ValueError: bad")
    ]


def test_a_message_that_is_repeated_counts_once_and_all_are_bounded() -> None:
    assert len(read("a.h:1:1: warning: old\n" * 50)) == 1
    many = "".join(f"a.c:{n}:1: warning: w\n" for n in range(1, MAX_DIAGNOSTICS + 500))
    assert len(read(many)) == MAX_DIAGNOSTICS


@pytest.mark.parametrize(
    "line",
    [
        "Compiling .pio/build/esp32/src/main.o",
        "Time: 12:30:45: error: of sorts",
        "*** [.pio/build/esp32/src/main.o] Error 1",
        "RAM:   [=         ]   5.2% (used 17004 bytes from 327680 bytes)",
        "::: error:",
        "\x00\x01",
    ],
)
def test_what_is_no_message_is_none(line: str) -> None:
    assert [one for one in read(line) if one.severity == "error" and one.line != 30] == []


def test_lines_come_whole_whatever_the_pieces() -> None:
    raw = "one\r\n\x1b[31mtw\x1b[0mo\n10%\r100% done\nü\n".encode()
    for size in range(1, len(raw)):
        reader = LineReader()
        lines = []
        for start in range(0, len(raw), size):
            lines += reader.feed(raw[start : start + size])
        assert lines + reader.end() == ["one", "two", "100% done", "ü"]


def test_a_line_without_end_is_cut_and_the_next_is_whole() -> None:
    reader = LineReader()
    lines = []
    for _ in range(100):
        lines += reader.feed(b"x" * 10_000)
    lines += reader.feed(b"tail\nnext\nlast")
    assert lines == ["x" * LINE_BYTES, "next"]
    assert reader.end() == ["last"]


def test_escapes_are_removed_from_a_stream_in_any_pieces() -> None:
    raw = b"\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x1b\\ \x1b(Bend\n"
    for size in range(1, len(raw)):
        stripped = EscapeFilter()
        out = b"".join(stripped.feed(raw[i : i + size]) for i in range(0, len(raw), size))
        assert out == b"red link end\n"


def test_an_escape_that_never_ends_holds_nothing_back() -> None:
    stripped = EscapeFilter()
    out = b"".join(stripped.feed(b"\x1b]" + b"x" * 1000) for _ in range(3))
    assert out.count(b"x") >= 2000


def test_sizes_and_counts_are_read() -> None:
    told: list[tuple[str, int, int]] = []
    found = OutputReading(lambda phase, done, total, detail="": told.append((phase, done, total)))
    found.feed(
        b"Compiling a.o\nLinking .pio/x.elf\nChecking size .pio/x.elf\n"
        b"RAM:   [          ]   0.3% (used 1040 bytes from 360448 bytes)\n"
        b"Flash: [=         ]  10.5% (used 95840 bytes from 3145728 bytes)\n"
    )
    assert told == [("compile", 1, 0), ("link", 0, 0), ("size", 0, 0)]
    assert found.size is not None
    assert found.size.model_dump() == {
        "ram_used": 1040, "ram_total": 360_448, "flash_used": 95_840, "flash_total": 3_145_728,
    }  # fmt: skip


def test_ninja_says_how_many_there_are() -> None:
    told: list[tuple[str, int, int]] = []
    found = OutputReading(lambda phase, done, total, detail="": told.append((phase, done, total)))
    found.feed(b"[12/900] Building C object main.c.obj\n")
    found.feed(b"hello.bin binary size 0x2e1c0 bytes. Smallest app partition is 0x100000 bytes.\n")
    assert told == [("compile", 12, 900)]
    assert found.size is not None
    assert (found.size.flash_used, found.size.flash_total) == (0x2E1C0, 0x100000)


def test_a_status_of_zero_is_no_failure() -> None:
    assert verdict(0, reading("a.c:1:1: error: ignored\n")) is None


def test_the_verdict_names_the_first_error_and_how_many() -> None:
    error = verdict(1, reading("a.c:1:2: error: one\nb.c:3:4: error: two\n"))
    assert isinstance(error, BuildFailed)
    assert error.message == "a.c:1: one (and 1 more)"
    assert error.facts["errors"] == 2


def test_too_large_is_told_from_other_failures() -> None:
    said = (
        "Error: The program size (4000000 bytes) is greater than maximum allowed (3145728 bytes)\n"
        "*** [checkprogsize] Explicit exit, status 1\n"
    )
    error = verdict(1, reading(said))
    assert isinstance(error, BuildTooLarge)
    assert error.facts == {"used_bytes": 4_000_000, "allowed_bytes": 3_145_728}
    linker = verdict(1, reading("/x/ld: region `iram0_0_seg' overflowed by 16 bytes\n"))
    assert isinstance(linker, BuildTooLarge)
    assert "iram0_0_seg" in linker.message
    idf = "Error: All app partitions are too small for binary hello.bin size 0x150000:\n"
    assert isinstance(verdict(1, reading(idf)), BuildTooLarge)


def test_complaints_of_platformio_become_their_errors() -> None:
    assert isinstance(
        verdict(1, reading("UnknownEnvNamesError: Unknown environment names 'x'\n")),
        EnvironmentUnknown,
    )
    assert isinstance(verdict(1, reading("HTTPClientError: \n")), PackageMissing)
    other = verdict(1, reading("something odd\n\n"))
    assert isinstance(other, BuildFailed)
    assert "something odd" in other.message


def test_a_killed_build_says_by_what() -> None:
    error = verdict(137, reading(""))
    assert error is not None
    assert "SIGKILL" in error.message
    assert "said nothing" in (verdict(3, reading("")) or BuildFailed("")).message
