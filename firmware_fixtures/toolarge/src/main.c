// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Prints a byte out of a table that is larger than the application's partition.

#include "aegis.h"

extern const uint8_t table[];
extern const uint32_t table_bytes;

int main(void)
{
    app_print_banner();
    console_printf("last byte %u\n", (unsigned)table[table_bytes - 1]);
    return 0;
}
