// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Wrong on purpose: there is no such header.

#include "calibration_table.h"

int calibrate(int raw)
{
    return raw + CALIBRATION_OFFSET;
}
