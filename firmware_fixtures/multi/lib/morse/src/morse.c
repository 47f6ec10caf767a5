// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Text to Morse code (ITU-R M.1677-1).

#include "morse.h"

static const char *const letters[] = {
    ".-",   "-...", "-.-.", "-..",  ".",   "..-.", "--.",  "....", "..",
    ".---", "-.-",  ".-..", "--",   "-.",  "---",  ".--.", "--.-", ".-.",
    "...",  "-",    "..-",  "...-", ".--", "-..-", "-.--", "--..",
};

static const char *const digits[] = {
    "-----", ".----", "..---", "...--", "....-", ".....", "-....", "--...", "---..", "----.",
};

static const char *code_of(char c)
{
    if (c >= 'a' && c <= 'z') {
        return letters[c - 'a'];
    }
    if (c >= 'A' && c <= 'Z') {
        return letters[c - 'A'];
    }
    if (c >= '0' && c <= '9') {
        return digits[c - '0'];
    }
    return c == ' ' ? "/" : NULL;
}

void morse_encode(const char *text, char *code, size_t code_bytes)
{
    size_t used = 0;
    for (; *text != '\0'; text++) {
        const char *sign = code_of(*text);
        if (sign == NULL) {
            continue;
        }
        if (used > 0 && used + 1 < code_bytes) {
            code[used++] = ' ';
        }
        for (; *sign != '\0' && used + 1 < code_bytes; sign++) {
            code[used++] = *sign;
        }
    }
    code[used] = '\0';
}
