// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Says hello with its own digest, counts twice a second, and answers a line typed at it.

#include "aegis.h"

enum { BEAT_US = 500000 };

static unsigned tenths_of_a_second(uint64_t elapsed_us)
{
#ifdef __riscv_flen
    // Floats on purpose: this is where a chip whose FPU was never switched on would stop.
    volatile float seconds = (float)elapsed_us * 1e-6f;
    return (unsigned)(seconds * 10.0f);
#else
    return (unsigned)(elapsed_us / 100000u);
#endif
}

int main(void)
{
    struct console_line typed = {.length = 0};
    uint64_t started_us = clock_us();

    console_printf("\n----------------------------------------\n");
    app_print_banner();
    console_printf("hello from %s\n", chip_name);
    console_printf("----------------------------------------\n");

    for (unsigned count = 1;; count++) {
        uint64_t next_us = started_us + (uint64_t)count * BEAT_US;
        while (console_wait_line(&typed, next_us)) {
            console_printf("you typed: %s\n", typed.text);
        }
        unsigned tenths = tenths_of_a_second(clock_us() - started_us);
        console_printf("count %u at %u.%u s\n", count, tenths / 10, tenths % 10);
    }
}
