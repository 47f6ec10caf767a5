// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// How the table is made: by the assembler for the image, by main.c for the comparison.

#pragma once

#define TABLE_WORDS 327680
#define TABLE_SEED 0x2545F491
#define TABLE_FACTOR 1664525
#define TABLE_STEP 1013904223
