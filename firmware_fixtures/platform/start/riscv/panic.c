// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// A panic as ESP-IDF's RISC-V panic handler prints it, so that its decoders read it.

#include "aegis.h"

struct panic_frame {
    unsigned registers[32]; // word 0 is MEPC, word n is x<n>
    unsigned mstatus;
    unsigned mtvec;
    unsigned mcause;
    unsigned mtval;
    unsigned mhartid;
};

enum { WORD_COUNT = 37, STACK_BYTES = 1024, WORDS_PER_LINE = 8 };

_Static_assert(sizeof(struct panic_frame) == WORD_COUNT * 4, "as panic_entry writes it");

static const char *const register_names[WORD_COUNT] = {
    "MEPC    ", "RA      ", "SP      ", "GP      ", "TP      ", "T0      ", "T1      ", "T2      ",
    "S0/FP   ", "S1      ", "A0      ", "A1      ", "A2      ", "A3      ", "A4      ", "A5      ",
    "A6      ", "A7      ", "S2      ", "S3      ", "S4      ", "S5      ", "S6      ", "S7      ",
    "S8      ", "S9      ", "S10     ", "S11     ", "T3      ", "T4      ", "T5      ", "T6      ",
    "MSTATUS ", "MTVEC   ", "MCAUSE  ", "MTVAL   ", "MHARTID ",
};

static const char *reason(unsigned mcause)
{
    static const char *const reasons[] = {
        "Instruction address misaligned", "Instruction access fault", "Illegal instruction",
        "Breakpoint", "Load address misaligned", "Load access fault", "Store address misaligned",
        "Store access fault", "Environment call from U-mode", "Environment call from S-mode",
        "Unknown reason", "Environment call from M-mode", "Instruction page fault",
        "Load page fault", "Unknown reason", "Store page fault",
    };
    return mcause < sizeof reasons / sizeof reasons[0] ? reasons[mcause] : "Unknown reason";
}

static void print_registers(const unsigned *words, unsigned core)
{
    console_printf("Core %2u register dump:", core);
    for (unsigned i = 0; i < WORD_COUNT; i++) {
        if (i % 4 == 0) {
            console_printf("\n");
        }
        console_printf("%s: 0x%08x  ", register_names[i], words[i]);
    }
    console_printf("\n");
}

static void print_stack(unsigned sp)
{
    console_printf("\nStack memory:\n");
    for (unsigned at = sp; at < sp + STACK_BYTES; at += WORDS_PER_LINE * 4) {
        const volatile unsigned *words = (const volatile unsigned *)(uintptr_t)at;
        console_printf("%08x:", at);
        for (unsigned i = 0; i < WORDS_PER_LINE; i++) {
            console_printf(" 0x%08x", words[i]);
        }
        console_printf("\n");
    }
}

// Called by panic_entry alone, with the frame that it wrote.
__attribute__((noreturn, used)) void panic(const struct panic_frame *frame)
{
    static unsigned entries;
    if (entries++ > 0) {
        // Such as a stack pointer that points nowhere.
        console_printf("\nPanic handler entered multiple times. Abort panic handling. Rebooting ...\n");
        chip_reset();
    }
    console_printf("Guru Meditation Error: Core %2u panic'ed (%s). Exception was unhandled.\n\n",
                   frame->mhartid, reason(frame->mcause));
    print_registers(frame->registers, frame->mhartid);
    print_stack(frame->registers[2]);
    console_printf("\n\nELF file SHA256: ");
    app_print_elf_sha256();
    console_printf("\n\nRebooting...\n");
    chip_reset();
}
