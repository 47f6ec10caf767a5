// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Counts dots and dashes over everything tapped so far.

#pragma once

#ifdef __cplusplus
extern "C" {
#endif

void tally_add(const char *code);
unsigned tally_dots(void);
unsigned tally_dashes(void);

#ifdef __cplusplus
}
#endif
