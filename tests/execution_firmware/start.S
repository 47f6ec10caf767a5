/* Start and trap code of the test image. */
    .section .text.start, "ax"
    .globl _start
_start:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la sp, _stack_top
    csrw mtvec, zero
#ifdef __riscv_flen
    li t0, 0x2000
    csrs mstatus, t0
#endif
    la t0, _bss_start
    la t1, _bss_end
1:  bgeu t0, t1, 2f
    sw zero, 0(t0)
    addi t0, t0, 4
    j 1b
2:  call main
3:  j 3b

    .text
    .balign 256
    .globl trap_entry
trap_entry:
    addi sp, sp, -80
    sw ra, 0(sp)
    sw t0, 4(sp)
    sw t1, 8(sp)
    sw t2, 12(sp)
    sw a0, 16(sp)
    sw a1, 20(sp)
    sw a2, 24(sp)
    sw a3, 28(sp)
    sw a4, 32(sp)
    sw a5, 36(sp)
    sw a6, 40(sp)
    sw a7, 44(sp)
    sw t3, 48(sp)
    sw t4, 52(sp)
    sw t5, 56(sp)
    sw t6, 60(sp)
    csrr t0, mepc
    sw t0, 64(sp)
    addi a0, sp, 64
    call on_trap
    lw t0, 64(sp)
    csrr t1, mcause
    li t2, 1
    bne t1, t2, 1f
    la t0, came_back
1:  csrw mepc, t0
    lw ra, 0(sp)
    lw t0, 4(sp)
    lw t1, 8(sp)
    lw t2, 12(sp)
    lw a0, 16(sp)
    lw a1, 20(sp)
    lw a2, 24(sp)
    lw a3, 28(sp)
    lw a4, 32(sp)
    lw a5, 36(sp)
    lw a6, 40(sp)
    lw a7, 44(sp)
    lw t3, 48(sp)
    lw t4, 52(sp)
    lw t5, 56(sp)
    lw t6, 60(sp)
    addi sp, sp, 80
    mret

    .globl jump_and_come_back
jump_and_come_back:
    addi sp, sp, -16
    sw ra, 0(sp)
    jr a0
came_back:
    lw ra, 0(sp)
    addi sp, sp, 16
    ret

    .globl load_from, load_here, store_to, store_here
load_from:
    li a5, 7
    addi a5, a5, 1
load_here:
    lw a0, 0(a0)
    ret
store_to:
    li a5, 7
store_here:
    .option push
    .option norvc
    sb a5, 0(a0)
    .option pop
    ret
    .globl run_illegal, illegal_here, run_ebreak, ebreak_here, run_ecall, ecall_here
run_illegal:
    li a5, 1
illegal_here:
    .word 0xffffffff
    ret
run_ebreak:
    li a5, 1
ebreak_here:
    ebreak
    ret
run_ecall:
    li a5, 1
ecall_here:
    ecall
    ret
