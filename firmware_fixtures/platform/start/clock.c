// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// The clock: SYSTIMER where the chip has one, the CPU's cycle counter on the ESP32.

#include "aegis.h"
#include "chip.h"

#if defined(SYSTIMER_BASE)

// Unit 0 runs at 16 MHz from reset on. Its value is latched on request.
#define UNIT0_OP REGISTER(SYSTIMER_BASE + 0x04u)
#define UNIT0_HIGH REGISTER(SYSTIMER_BASE + 0x40u)
#define UNIT0_LOW REGISTER(SYSTIMER_BASE + 0x44u)
#define OP_LATCH (1u << 30)
#define OP_VALID (1u << 29)

uint64_t clock_us(void)
{
    UNIT0_OP = OP_LATCH;
    for (int looks = 0; looks < 1000 && (UNIT0_OP & OP_VALID) == 0; looks++) {
    }
    uint64_t ticks = ((uint64_t)(UNIT0_HIGH & 0xFFFFFu) << 32) | UNIT0_LOW;
    return ticks / 16u;
}

#else

// The ROM leaves the CPU on the 40 MHz crystal. 32 bits wrap after 107 s: asked more often than
// that, the difference to the last look is right.
uint64_t clock_us(void)
{
    static uint32_t last;
    static uint64_t cycles;
    uint32_t now;
    __asm__ volatile("rsr %0, ccount" : "=r"(now));
    cycles += now - last;
    last = now;
    return cycles / 40u;
}

#endif
