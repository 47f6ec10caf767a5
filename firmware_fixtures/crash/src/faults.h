// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// The ways this program knows to fault.

#pragma once

// Fault in the way that `name` says; returns only if there is no such way.
void run_self_test(const char *name);
