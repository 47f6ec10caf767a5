// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Text to Morse code.

#pragma once

#include <stddef.h>

enum { MORSE_MAX = 800 };

// Write `text` as dots and dashes to `code`, letters separated by a space, words by " / "; what
// has no code is left out, what doesn't fit into `code_bytes` (at least 1) is cut.
void morse_encode(const char *text, char *code, size_t code_bytes);
