// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// Addresses of the peripherals that the start code touches (each chip's reg_base.h in ESP-IDF).

#pragma once

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#if defined(AEGIS_CHIP_ESP32)
#define UART0_BASE 0x3FF40000u
#define RESET_REGISTER 0x3FF48000u // RTC_CNTL_OPTIONS0_REG
#define RESET_BIT (1u << 31)       // RTC_CNTL_SW_SYS_RST
#elif defined(AEGIS_CHIP_ESP32C3)
#define UART0_BASE 0x60000000u
#define SYSTIMER_BASE 0x60023000u
#define RESET_REGISTER 0x60008000u // RTC_CNTL_OPTIONS0_REG
#define RESET_BIT (1u << 31)       // RTC_CNTL_SW_SYS_RST
#elif defined(AEGIS_CHIP_ESP32C6)
#define UART0_BASE 0x60000000u
#define SYSTIMER_BASE 0x6000A000u
#define RESET_REGISTER 0x600B1034u // LP_AON_SYS_CFG_REG
#define RESET_BIT (1u << 31)       // LP_AON_HPSYS_SW_RESET
#elif defined(AEGIS_CHIP_ESP32P4)
#define UART0_BASE 0x500CA000u
#define SYSTIMER_BASE 0x500E2000u
#define RESET_REGISTER 0x50110008u // LP_SYS_SYS_CTRL_REG
#define RESET_BIT (1u << 1)        // LP_SYS_SYS_SW_RST
#else
#error "the builder defines AEGIS_CHIP_<NAME>"
#endif

#define UART_FIFO REGISTER(UART0_BASE + 0x00u)
#define UART_STATUS REGISTER(UART0_BASE + 0x1Cu)
#define UART_FIFO_BYTES 128u
