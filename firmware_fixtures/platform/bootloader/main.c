// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// A second-stage bootloader that only says what it is: it sets up no flash mapping, so it can't
// start an application.

#include "aegis.h"

int main(void)
{
    for (uint64_t next_us = clock_us();; next_us += 1000000u) {
        struct console_line line = {.length = 0};
        while (console_wait_line(&line, next_us)) {
        }
        console_printf("aegis-esp bootloader on %s: this image can't start an application\n",
                       chip_name);
    }
}
