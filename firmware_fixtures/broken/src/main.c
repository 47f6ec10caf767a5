// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// The part that compiles.

#include "aegis.h"

int read_temperature(void);
int calibrate(int raw);

int main(void)
{
    app_print_banner();
    console_printf("temperature %d\n", calibrate(read_temperature()));
    return 0;
}
