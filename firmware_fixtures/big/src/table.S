// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// 1.25 MiB of numbers, each made from the one before, by the assembler: nothing is generated
// beforehand, and hardly anything of it can be compressed.

#include "table.h"

    .section .rodata.table, "a"
    .balign 4
    .global table
table:
    .set    number, TABLE_SEED
    .rept   TABLE_WORDS
    .4byte  number
    .set    number, (number * TABLE_FACTOR + TABLE_STEP) & 0xFFFFFFFF
    .endr
