// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Entry point of an ESP32 image, in the call0 ABI: the lx106 compiler knows no register windows.

    .section .text._start, "ax"
    .literal_position
    .align 4
    .global _start
    .type _start, @function
_start:
    movi    a1, __stack_top
    movi    a0, 0
    call0   startup
    .size _start, . - _start
