// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Wrong on purpose: `reading` is declared nowhere.

int read_temperature(void)
{
    int scale = 10;
    return reading * scale;
}
