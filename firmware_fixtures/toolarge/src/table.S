// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// 3.25 MiB of data: the factory partition has 3 MiB.

#define TABLE_BYTES 0x340000

    .section .rodata.table, "a"
    .balign 4
    .global table
table:
    .fill   TABLE_BYTES / 4, 4, 0x5AA55AA5

    .global table_bytes
table_bytes:
    .4byte  TABLE_BYTES
