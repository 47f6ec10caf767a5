// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Reads its whole table from flash, compares each word with what it must be, and prints a
// checksum over what it read (FNV-1a by words), again and again.

#include "aegis.h"
#include "table.h"

#include <stddef.h>

extern const volatile uint32_t table[TABLE_WORDS];

struct verdict {
    uint32_t checksum;
    size_t wrong_words;
};

static struct verdict check_table(void)
{
    struct verdict verdict = {.checksum = 2166136261u, .wrong_words = 0};
    uint32_t expected = TABLE_SEED;
    for (size_t i = 0; i < TABLE_WORDS; i++) {
        uint32_t word = table[i];
        verdict.checksum = (verdict.checksum ^ word) * 16777619u;
        verdict.wrong_words += word != expected;
        expected = expected * TABLE_FACTOR + TABLE_STEP;
    }
    return verdict;
}

int main(void)
{
    struct console_line typed = {.length = 0};

    app_print_banner();
    for (;;) {
        struct verdict verdict = check_table();
        console_printf("big on %s: %u bytes, checksum %08x, %s\n", chip_name,
                       (unsigned)sizeof table, (unsigned)verdict.checksum,
                       verdict.wrong_words == 0 ? "verified" : "DAMAGED");
        (void)console_wait_line(&typed, clock_us() + 1000000u);
    }
}
