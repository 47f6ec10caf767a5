// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Taps out in Morse its chip's name, then every line typed at it.

#include "aegis.h"
#include "morse.h"
#include "tally.h"

static void tap(const char *text)
{
    char code[MORSE_MAX];
    morse_encode(text, code, sizeof code);
    tally_add(code);
    console_printf("%s: %s\n", text, code);
    console_printf("dots %u, dashes %u\n", tally_dots(), tally_dashes());
}

int main(void)
{
    struct console_line typed = {.length = 0};

    app_print_banner();
    tap(chip_name);
    for (;;) {
        if (console_wait_line(&typed, clock_us() + 1000000u)) {
            tap(typed.text);
        }
    }
}
