// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Multiplication and division that GCC expects and Debian's lx106 libgcc lacks: the ESP8266, which
// that compiler is made for, has them in its ROM. Float arithmetic is missing too and not added.

#include <stdint.h>

struct quotient {
    uint64_t result;
    uint64_t rest;
};

// Shift and subtract. By zero: all ones, as RISC-V's divider answers.
static struct quotient divide(uint64_t dividend, uint64_t divisor, int bits)
{
    struct quotient q = {0, 0};
    for (int bit = bits - 1; bit >= 0; bit--) {
        q.rest = (q.rest << 1) | ((dividend >> bit) & 1u);
        q.result <<= 1;
        if (q.rest >= divisor) {
            q.rest -= divisor;
            q.result |= 1u;
        }
    }
    return q;
}

uint32_t __udivsi3(uint32_t dividend, uint32_t divisor)
{
    return (uint32_t)divide(dividend, divisor, 32).result;
}

uint32_t __umodsi3(uint32_t dividend, uint32_t divisor)
{
    return (uint32_t)divide(dividend, divisor, 32).rest;
}

uint64_t __udivdi3(uint64_t dividend, uint64_t divisor)
{
    return divide(dividend, divisor, 64).result;
}

uint64_t __umoddi3(uint64_t dividend, uint64_t divisor)
{
    return divide(dividend, divisor, 64).rest;
}

int32_t __divsi3(int32_t dividend, int32_t divisor)
{
    uint32_t n = dividend < 0 ? 0u - (uint32_t)dividend : (uint32_t)dividend;
    uint32_t d = divisor < 0 ? 0u - (uint32_t)divisor : (uint32_t)divisor;
    uint32_t size = __udivsi3(n, d);
    return (int32_t)((dividend < 0) != (divisor < 0) ? 0u - size : size);
}

uint64_t __muldi3(uint64_t left, uint64_t right)
{
    uint64_t product = 0;
    for (; right != 0; right >>= 1, left <<= 1) {
        if (right & 1u) {
            product += left;
        }
    }
    return product;
}

// Since GCC 13 this is what a product of two words becomes.
uint64_t __umulsidi3(uint32_t left, uint32_t right)
{
    return __muldi3(left, right);
}
