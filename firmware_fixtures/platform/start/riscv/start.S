// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Entry point of a RISC-V image, and the way into the panic.

    .section .text._start, "ax"
    .global _start
    .type _start, @function
_start:
    .option push
    .option norelax
    la      gp, __global_pointer$
    .option pop
    la      sp, __stack_top
    la      t0, panic_entry
    csrw    mtvec, t0
    la      t0, panic_stack_top
    csrw    mscratch, t0
#ifdef __riscv_flen
    // mstatus.FS is Off after reset, and a float instruction illegal until it is not.
    li      t0, 0x2000
    csrs    mstatus, t0
    fscsr   zero
#endif
    li      ra, 0
    li      s0, 0
    tail    startup
    .size _start, . - _start

    // Every trap is a panic. The frame has the order in which ESP-IDF prints it: word n is x<n>,
    // word 0 is mepc. It lies on a stack of its own, since SP itself may be what went wrong.
    // 256 aligned: the C3's mtvec is vectored, and an exception enters at its base.
    .section .iram0.text.panic_entry, "ax"
    .balign 256
    .global panic_entry
    .type panic_entry, @function
panic_entry:
    csrrw   sp, mscratch, sp
    addi    sp, sp, -(37 * 4 + 12)
    sw      ra, 1 * 4(sp)
    sw      gp, 3 * 4(sp)
    sw      tp, 4 * 4(sp)
    sw      t0, 5 * 4(sp)
    sw      t1, 6 * 4(sp)
    sw      t2, 7 * 4(sp)
    sw      s0, 8 * 4(sp)
    sw      s1, 9 * 4(sp)
    sw      a0, 10 * 4(sp)
    sw      a1, 11 * 4(sp)
    sw      a2, 12 * 4(sp)
    sw      a3, 13 * 4(sp)
    sw      a4, 14 * 4(sp)
    sw      a5, 15 * 4(sp)
    sw      a6, 16 * 4(sp)
    sw      a7, 17 * 4(sp)
    sw      s2, 18 * 4(sp)
    sw      s3, 19 * 4(sp)
    sw      s4, 20 * 4(sp)
    sw      s5, 21 * 4(sp)
    sw      s6, 22 * 4(sp)
    sw      s7, 23 * 4(sp)
    sw      s8, 24 * 4(sp)
    sw      s9, 25 * 4(sp)
    sw      s10, 26 * 4(sp)
    sw      s11, 27 * 4(sp)
    sw      t3, 28 * 4(sp)
    sw      t4, 29 * 4(sp)
    sw      t5, 30 * 4(sp)
    sw      t6, 31 * 4(sp)
    csrr    t0, mepc
    sw      t0, 0(sp)
    csrr    t0, mscratch
    sw      t0, 2 * 4(sp)
    csrr    t0, mstatus
    sw      t0, 32 * 4(sp)
    csrr    t0, mtvec
    sw      t0, 33 * 4(sp)
    csrr    t0, mcause
    sw      t0, 34 * 4(sp)
    csrr    t0, mtval
    sw      t0, 35 * 4(sp)
    csrr    t0, mhartid
    sw      t0, 36 * 4(sp)
    // A fault inside the panic starts again on the same stack, and panic() sees that it did.
    la      t0, panic_stack_top
    csrw    mscratch, t0
    .option push
    .option norelax
    la      gp, __global_pointer$
    .option pop
    mv      a0, sp
    tail    panic
    .size panic_entry, . - panic_entry

    .section .bss.panic_stack, "aw", @nobits
    .balign 16
    .skip 1024
panic_stack_top:
