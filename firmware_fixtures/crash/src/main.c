// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Runs for two seconds, then reads through a null pointer, several calls deep. A line typed before
// that chooses another fault: load, store, illegal, breakpoint, jump, stack.

#include "aegis.h"
#include "faults.h"

enum { CALM_US = 2000000 };

int main(void)
{
    struct console_line typed = {.length = 0};

    app_print_banner();
    console_printf("crash on %s: load, store, illegal, breakpoint, jump or stack?\n", chip_name);
    bool chosen = console_wait_line(&typed, clock_us() + CALM_US);
    run_self_test(chosen ? typed.text : "load");
    console_printf("there is no fault of that name\n");
    return 0;
}
