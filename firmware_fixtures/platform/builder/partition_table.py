# SPDX-FileCopyrightText: The Aegis authors
# SPDX-License-Identifier: Apache-2.0
"""
A partition table from CSV to the binary form that the ROM and ESP-IDF read.

    partition_table.py TABLE.csv TABLE.bin

A row is `name, type, subtype, offset, size, flags`; `#` starts a comment. Offsets must be given:
nothing is placed by guessing. The binary has one 32-byte entry per row, a line with the MD5 of
the entries, and 0xff up to 0xc00 bytes. A mistake is one sentence on stderr and exit status 1.
"""

import hashlib
import struct
import sys
from pathlib import Path

TABLE_BYTES = 0xC00
SECTOR_BYTES = 0x1000
APP_ALIGNMENT_BYTES = 0x10000
TYPES = {"app": 0x00, "data": 0x01}
SUBTYPES = {
    "app": {"factory": 0x00, "test": 0x20, **{f"ota_{n}": 0x10 + n for n in range(16)}},
    "data": {
        "ota": 0x00, "phy": 0x01, "nvs": 0x02, "coredump": 0x03, "nvs_keys": 0x04,
        "efuse": 0x05, "fat": 0x81, "spiffs": 0x82, "littlefs": 0x83,
    },
}  # fmt: skip
FLAGS = {"": 0, "encrypted": 1, "readonly": 2}


class TableError(Exception):
    """A row that can't be a partition."""


def number(text, subject):
    """Return `text` (decimal, 0x…, or with K or M) as an integer."""
    scale = {"k": 1024, "m": 1024 * 1024}.get(text[-1:].lower(), 1)
    try:
        return int(text[:-1] if scale > 1 else text, 0) * scale
    except ValueError:
        raise TableError(f"{subject}: {text!r} is no number") from None


def named(table, text, subject):
    return table[text] if text in table else number(text, subject)


def parse_row(line):
    """Return `(name, type, subtype, offset, size, flags)` of one row."""
    cells = [cell.strip() for cell in line.split(",")] + [""]
    if len(cells) < 6:
        raise TableError("a row is: name, type, subtype, offset, size, flags")
    name, kind, subkind, offset, size, flags = cells[:6]
    if not 0 < len(name.encode()) < 16:
        raise TableError("a name has 1 to 15 bytes")
    if not offset or not size:
        raise TableError(f"{name}: offset and size must be given")
    row = (
        name,
        named(TYPES, kind, f"type of {name}"),
        named(SUBTYPES.get(kind, {}), subkind, f"subtype of {name}"),
        number(offset, f"offset of {name}"),
        number(size, f"size of {name}"),
        named(FLAGS, flags, f"flags of {name}"),
    )
    alignment = APP_ALIGNMENT_BYTES if kind == "app" else SECTOR_BYTES
    if row[3] % alignment:
        raise TableError(f"{name}: the offset is no multiple of {alignment:#x}")
    return row


def parse(text):
    """Return the rows of a CSV table; overlapping ones are an error."""
    rows = []
    end = 0
    for line_number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        try:
            row = parse_row(line)
            if row[3] < end:
                raise TableError(f"{row[0]} overlaps what stands before it")
        except TableError as exc:
            raise TableError(f"line {line_number}: {exc}") from None
        end = row[3] + row[4]
        rows.append(row)
    return rows


def pack(rows):
    """Return the binary table of `rows`."""
    entries = b"".join(
        struct.pack("<2sBBII16sI", b"\xaa\x50", kind, subkind, offset, size, name.encode(), flags)
        for name, kind, subkind, offset, size, flags in rows
    )
    table = entries + b"\xeb\xeb" + b"\xff" * 14 + hashlib.md5(entries).digest()
    if len(table) > TABLE_BYTES:
        raise TableError(f"{len(rows)} partitions don't fit into one table")
    return table.ljust(TABLE_BYTES, b"\xff")


def main(source, target):
    try:
        Path(target).write_bytes(pack(parse(Path(source).read_text(encoding="utf-8"))))
    except (TableError, OSError, UnicodeDecodeError) as exc:
        print(f"Error: partition table {source}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
