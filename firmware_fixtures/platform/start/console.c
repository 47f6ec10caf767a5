// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// The console: bytes to and from UART0 by polling, and printf over it.

#include "aegis.h"
#include "chip.h"

#include <stdarg.h>

// At 115200 baud a byte leaves in 87 us; a FIFO that is still full after this many looks is stuck.
enum { PATIENCE_LOOKS = 1000000 };

static void put_raw(char c)
{
    for (int looks = 0; looks < PATIENCE_LOOKS; looks++) {
        if (((UART_STATUS >> 16) & 0xFFu) < UART_FIFO_BYTES - 2u) {
            UART_FIFO = (uint8_t)c;
            return;
        }
    }
}

void console_put(char c)
{
    if (c == '\n') {
        put_raw('\r');
    }
    put_raw(c);
}

int console_get(void)
{
    if ((UART_STATUS & 0xFFu) == 0) {
        return -1;
    }
    return (int)(UART_FIFO & 0xFFu);
}

bool console_line_ready(struct console_line *line)
{
    for (int c = console_get(); c >= 0; c = console_get()) {
        if (c == '\r' || c == '\n') {
            if (line->length == 0) {
                continue; // the LF of a CR LF, or an empty line
            }
            line->text[line->length] = '\0';
            line->length = 0;
            return true;
        }
        if (line->length < CONSOLE_LINE_MAX) {
            line->text[line->length++] = (char)c;
        }
    }
    return false;
}

bool console_wait_line(struct console_line *line, uint64_t deadline_us)
{
    do {
        if (console_line_ready(line)) {
            return true;
        }
    } while (clock_us() < deadline_us);
    return false;
}

static void put_number(uint32_t value, uint32_t base, bool negative, char pad, int width)
{
    char digits[12];
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    if (negative) {
        digits[count++] = '-';
    }
    for (int missing = width - count; missing > 0; missing--) {
        console_put(pad);
    }
    while (count > 0) {
        console_put(digits[--count]);
    }
}

void console_printf(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (const char *at = format; *at != '\0'; at++) {
        if (*at != '%') {
            console_put(*at);
            continue;
        }
        at++;
        char pad = ' ';
        int width = 0;
        if (*at == '0') {
            pad = '0';
            at++;
        }
        while (*at >= '0' && *at <= '9') {
            width = width * 10 + (*at++ - '0');
        }
        switch (*at) {
        case 's':
            for (const char *s = va_arg(arguments, const char *); *s != '\0'; s++) {
                console_put(*s);
            }
            break;
        case 'c':
            console_put((char)va_arg(arguments, int));
            break;
        case 'd': {
            int value = va_arg(arguments, int);
            uint32_t size = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
            put_number(size, 10, value < 0, pad, width);
            break;
        }
        case 'u':
            put_number(va_arg(arguments, unsigned), 10, false, pad, width);
            break;
        case 'x':
            put_number(va_arg(arguments, unsigned), 16, false, pad, width);
            break;
        case '\0':
            va_end(arguments);
            return;
        default:
            console_put(*at);
        }
    }
    va_end(arguments);
}
