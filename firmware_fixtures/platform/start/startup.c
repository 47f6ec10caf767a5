// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// From the entry point, once there is a stack, to main().

#include "aegis.h"
#include "chip.h"

typedef void (*initializer)(void);

extern uint32_t __bss_start[], __bss_end[];
extern initializer __init_array_start[], __init_array_end[];

__attribute__((noreturn, used)) void startup(void)
{
    for (volatile uint32_t *word = __bss_start; word < __bss_end; word++) {
        *word = 0;
    }
    for (initializer *each = __init_array_start; each < __init_array_end; each++) {
        (*each)();
    }
    main();
    for (;;) {
        (void)console_get(); // reading the UART lets an emulator see that nothing happens here
    }
}

void chip_reset(void)
{
    REGISTER(RESET_REGISTER) |= RESET_BIT;
    for (;;) {
        (void)console_get();
    }
}
