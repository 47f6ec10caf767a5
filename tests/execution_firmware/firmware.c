/*
 * A bare-metal image for the tests of the board's execution: it prints a banner, then does what
 * each byte typed on its UART says. Register addresses come from the command line (-D).
 */
#include <stdint.h>

#define REG(address) (*(volatile uint32_t *)(address))
#define UART_FIFO REG(UART0)
#define UART_STATUS REG(UART0 + 0x1c)

typedef struct {
    uint32_t magic, secure_version, reserved[2];
    char version[32], project[32], time[16], date[16], idf[32];
    uint8_t elf_sha256[32];
    uint32_t more[20];
} app_desc_t;

__attribute__((section(".app_desc"), used)) static const app_desc_t app_desc = {
    .magic = 0xABCD5432, .version = "1.2.3", .project = "execution", .idf = "none"};

static uint32_t zeroed_by_start[4];
static uint32_t copied_to_ram = 0x600dda7a;

static void put(char c)
{
    while (((UART_STATUS >> 16) & 0xff) >= 126) {
    }
    UART_FIFO = (uint8_t)c;
}

static void say(const char *text)
{
    while (*text)
        put(*text++);
}

static void number(uint32_t value)
{
    char digits[11];
    int at = 10;
    digits[at] = 0;
    do
        digits[--at] = '0' + value % 10;
    while (value /= 10);
    say(digits + at);
}

static void hexadecimal(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[(value >> shift) & 15]);
}

static void line(const char *name, uint32_t value)
{
    say(name);
    put(' ');
    number(value);
    say("\r\n");
}

static char get(void)
{
    while ((UART_STATUS & 0xff) == 0) {
    }
    return (char)UART_FIFO;
}

static uint64_t ticks(void)
{
    REG(SYSTIMER + 4) = 1u << 30;
    while (!(REG(SYSTIMER + 4) & (1u << 29))) {
    }
    uint64_t high = REG(SYSTIMER + 0x40);
    return high << 32 | REG(SYSTIMER + 0x44);
}

static uint32_t cycles(void)
{
    uint32_t value;
    __asm__ volatile("csrr %0, 0xb00" : "=r"(value));
    return value;
}

static void echo(void)
{
    char text[80];
    unsigned n = 0;
    for (char c; (c = get()) != '\n';)
        if (n < sizeof text - 1)
            text[n++] = c;
    text[n] = 0;
    say("heard ");
    say(text);
    say("\r\n");
}

static void count(void)
{
    for (uint32_t i = 0; i < 5; i++) {
        line("count", i);
        for (uint64_t until = ticks() + 16000u * 20; ticks() < until;) {
        }
    }
}

static void clocks(void)
{
    uint64_t t = ticks();
    uint32_t c = cycles();
    while (ticks() - t < 16000u * 100) {
    }
    line("cycles per tick", (cycles() - c) / (uint32_t)(ticks() - t));
}

#ifdef __riscv_flen
static void floats(void)
{
    volatile float sum = 0, step = 0.25f;
    for (int i = 0; i < 400; i++)
        sum += step * step;
    line("float", (uint32_t)(sum * 100));
}
#endif

#ifdef __riscv_atomic
static void atomics(void)
{
    static volatile uint32_t cell = 40;
    __atomic_fetch_add(&cell, 1, __ATOMIC_SEQ_CST);
    uint32_t expected = 41;
    __atomic_compare_exchange_n(&cell, &expected, 42, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    line("atomic", cell);
}

/* Long enough to be interrupted: an instruction that is done twice shows in the sums. */
static void many_atomics(void)
{
    static uint32_t added, reserved;
    added = reserved = 0;
    for (uint32_t i = 0; i < 25000; i++) {
        uint32_t old, failed;
        __asm__ volatile("amoadd.w zero, %1, (%0)" : : "r"(&added), "r"(1) : "memory");
        __asm__ volatile("1: lr.w %0, (%2)\n addi %0, %0, 1\n sc.w %1, %0, (%2)\n bnez %1, 1b"
                         : "=&r"(old), "=&r"(failed)
                         : "r"(&reserved)
                         : "memory");
    }
    line("added", added);
    line("reserved", reserved);
}
#else
static void atomics(void)
{
    __asm__ volatile("mv a0, sp\n .word 0x00b5252f" : : : "a0", "memory"); /* amoadd.w a0,a1,(a0) */
}
#endif

static void private_csr(void)
{
    uint32_t value;
    __asm__ volatile("csrw 0x7c5, %1\n csrrsi %0, 0x7c5, 3\n csrr %0, 0x7c5"
                     : "=r"(value)
                     : "r"(0x50));
    line("csr", value);
}

void on_trap(uint32_t *mepc)
{
    uint32_t cause, value;
    __asm__ volatile("csrr %0, mcause\n csrr %1, mtval" : "=r"(cause), "=r"(value));
    say("trap ");
    number(cause);
    put(' ');
    hexadecimal(value);
    say(" at ");
    hexadecimal(*mepc);
    say("\r\n");
    *mepc += cause == 1 ? 0 : (*(uint16_t *)*mepc & 3) == 3 ? 4 : 2;
}

extern void trap_entry(void);
extern void jump_and_come_back(uint32_t address);
extern char load_here[], store_here[], illegal_here[], ebreak_here[], ecall_here[];
extern void load_from(uint32_t), store_to(uint32_t), run_illegal(void), run_ebreak(void);
extern void run_ecall(void);

static void place(const char *name, const char *address)
{
    say(name);
    put(' ');
    hexadecimal((uint32_t)(uintptr_t)address);
    say("\r\n");
}

static void traps(void)
{
    __asm__ volatile("csrw mtvec, %0" : : "r"((uint32_t)(uintptr_t)trap_entry | MTVEC_MODE));
    place("load", load_here);
    load_from(0x10);
    place("store", store_here);
    store_to(0x24);
    place("flash", store_here);
    store_to((uint32_t)(uintptr_t)&app_desc);
    place("illegal", illegal_here);
    run_illegal();
    place("ebreak", ebreak_here);
    run_ebreak();
    place("ecall", ecall_here);
    run_ecall();
    jump_and_come_back(0x33333330);
    jump_and_come_back(UART0);
    say("all traps returned\r\n");
}

void main(void)
{
    say("execution ");
    say(CHIP);
    say(" ready ");
    hexadecimal(copied_to_ram);
    number(zeroed_by_start[3]);
    say("\r\n");
    for (;;) {
        switch (get()) {
        case 'e': echo(); break;
        case 'c': count(); break;
        case 'k': clocks(); break;
#ifdef __riscv_flen
        case 'f': floats(); break;
#endif
        case 'a': atomics(); break;
#ifdef __riscv_atomic
        case 'A': many_atomics(); break;
#endif
        case 'p': private_csr(); break;
        case 't': traps(); break;
        case 'n': load_from(0xc); break;
        case 'j': ((void (*)(void))ROM_CODE)(); break;
        case 'm': line("mac", REG(MAC)); break;
        case 'r': say("restarting\r\n"); REG(RESET_REG) = RESET_BIT; for (;;) {}
        case 'w': say("waiting\r\n"); for (;;) __asm__ volatile("wfi");
        case 's': say("spinning\r\n"); for (;;) {}
        case 'b': for (;;) say("babble babble babble babble\r\n");
        case 'x': /* a stack that isn't there, so that the handler faults too */
            __asm__ volatile("csrw mtvec, %0\n li sp, 64\n sw zero, 0(sp)"
                             : : "r"((uint32_t)(uintptr_t)trap_entry | MTVEC_MODE));
            break;
        case 'u': /* a handler that is not there */
            __asm__ volatile("csrw mtvec, %0" : : "r"(0x11110000));
            load_from(0xc);
            break;
        }
    }
}
