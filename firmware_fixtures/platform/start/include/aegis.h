// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// What the start code gives to a program: a console, a clock, its own description, a reset.
// No C library stands behind it; main() gets control with RAM and stack ready.

#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The program's own. Returning from it ends in an idle loop that answers nothing.
int main(void);

// ---- console: UART0, polled ------------------------------------------------------------------

// Send one byte; '\n' goes out as CR LF. A transmitter that never drains loses the byte.
void console_put(char c);

// printf with %s %c %d %u %x %08x (any width, with or without the 0) and %%.
void console_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

// One received byte, or -1 when none waits.
int console_get(void);

enum { CONSOLE_LINE_MAX = 120 };

// A line being typed. Zero it before first use.
struct console_line {
    char text[CONSOLE_LINE_MAX + 1];
    unsigned length;
};

// Take what was typed since the last call. True once a CR or LF ended a line that is not empty:
// `text` then holds it, and the next call starts a new one. Bytes past CONSOLE_LINE_MAX are lost.
bool console_line_ready(struct console_line *line);

// ---- clock -----------------------------------------------------------------------------------

// Microseconds since the clock started; never goes back.
uint64_t clock_us(void);

// Wait until `deadline_us`, or until a line is complete; true in the second case.
bool console_wait_line(struct console_line *line, uint64_t deadline_us);

// ---- the program -----------------------------------------------------------------------------

// ESP-IDF's esp_app_desc_t. It stands first in flash; esptool patches `elf_sha256` into the image.
struct app_description {
    uint32_t magic;
    uint32_t secure_version;
    uint32_t reserved_1[2];
    char version[32];
    char project_name[32];
    char time[16];
    char date[16];
    char idf_version[32];
    uint8_t elf_sha256[32];
    uint16_t min_efuse_block_revision;
    uint16_t max_efuse_block_revision;
    uint8_t mmu_page_size_log2;
    uint8_t reserved_3[3];
    uint32_t reserved_2[18];
};

extern const struct app_description esp_app_desc;

// The chip this was built for, as esptool spells it.
extern const char chip_name[];

// Print name, version, chip and ELF SHA-256 as ESP-IDF's app_init does, the digest in full.
void app_print_banner(void);

// Print `esp_app_desc.elf_sha256` as 64 hexadecimal digits.
void app_print_elf_sha256(void);

// Reset the chip by software.
__attribute__((noreturn)) void chip_reset(void);

#ifdef __cplusplus
}
#endif
