// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Faults at the bottom of a call chain whose names a backtrace must show:
// run_self_test, check_sensors, read_sensor, then the function that faults.

#include "faults.h"

#include "aegis.h"

#include <stddef.h>

typedef unsigned (*fault)(uintptr_t address);

// Each caller works on after its call: a tail call would leave no frame to find.
#define FRAME __attribute__((noinline, noclone))

FRAME static unsigned load_from(uintptr_t address)
{
    return *(volatile unsigned *)address;
}

FRAME static unsigned store_to(uintptr_t address)
{
    *(volatile unsigned *)address = 42;
    return 0;
}

FRAME static unsigned execute_illegal(uintptr_t address)
{
#ifdef __riscv
    __asm__ volatile(".4byte 0xFFFFFFFF");
#else
    __asm__ volatile("ill");
#endif
    return (unsigned)address;
}

FRAME static unsigned hit_breakpoint(uintptr_t address)
{
#ifdef __riscv
    __asm__ volatile("ebreak");
#else
    __asm__ volatile("break 0, 0");
#endif
    return (unsigned)address;
}

FRAME static unsigned jump_to(uintptr_t address)
{
    void (*volatile nowhere)(void) = (void (*)(void))address;
    nowhere();
    return 0;
}

// Pushes to a stack that isn't there: a panic that can't dump its stack either.
FRAME static unsigned lose_stack(uintptr_t address)
{
#ifdef __riscv
    __asm__ volatile("li sp, 64\n\tsw zero, 0(sp)");
#else
    __asm__ volatile("movi a1, 64\n\ts32i a0, a1, 0");
#endif
    return (unsigned)address;
}

static const struct {
    const char *name;
    fault run;
} faults[] = {
    {"load", load_from},
    {"store", store_to},
    {"illegal", execute_illegal},
    {"breakpoint", hit_breakpoint},
    {"jump", jump_to},
    {"stack", lose_stack},
};

FRAME static unsigned read_sensor(fault run, unsigned channel)
{
    static volatile uintptr_t no_device; // what a driver finds that was never initialized
    unsigned value = run(no_device + channel * 4u);
    return value + channel;
}

FRAME static unsigned check_sensors(fault run)
{
    unsigned sum = 0;
    for (unsigned channel = 0; channel < 4; channel++) {
        sum += read_sensor(run, channel);
    }
    return sum;
}

static bool same(const char *left, const char *right)
{
    for (; *left == *right; left++, right++) {
        if (*left == '\0') {
            return true;
        }
    }
    return false;
}

void run_self_test(const char *name)
{
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        if (same(name, faults[i].name)) {
            console_printf("sensors: %u\n", check_sensors(faults[i].run));
        }
    }
}
