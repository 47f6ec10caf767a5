// SPDX-FileCopyrightText: The Aegis authors
// SPDX-License-Identifier: Apache-2.0

// What the program says of itself. The builder gives APP_NAME, APP_VERSION and PLATFORM_NAME.

#include "aegis.h"
#include "chip.h"

_Static_assert(sizeof(struct app_description) == 256, "esp_app_desc_t has 256 bytes");

// __DATE__ and __TIME__ follow SOURCE_DATE_EPOCH.
__attribute__((section(".rodata_desc"), used)) const struct app_description esp_app_desc = {
    .magic = 0xABCD5432u,
    .version = APP_VERSION,
    .project_name = APP_NAME,
    .time = __TIME__,
    .date = __DATE__,
    .idf_version = PLATFORM_NAME,
    .min_efuse_block_revision = 0,
    .max_efuse_block_revision = 0xFFFFu,
    .mmu_page_size_log2 = 16,
};

const char chip_name[] = AEGIS_CHIP;

// Through a volatile view: the compiler sees zeros here, the image holds the digest.
static uint8_t elf_sha256_byte(unsigned i)
{
    return ((const volatile uint8_t *)esp_app_desc.elf_sha256)[i];
}

void app_print_elf_sha256(void)
{
    for (unsigned i = 0; i < sizeof esp_app_desc.elf_sha256; i++) {
        console_printf("%02x", elf_sha256_byte(i));
    }
}

static void info(const char *label, const char *value)
{
    console_printf("I (%u) app_init: %s%s\n", (unsigned)(clock_us() / 1000u), label, value);
}

void app_print_banner(void)
{
    info("Application information:", "");
    info("Project name:     ", esp_app_desc.project_name);
    info("App version:      ", esp_app_desc.version);
    info("Chip:             ", chip_name);
    console_printf("I (%u) app_init: ELF file SHA256:  ", (unsigned)(clock_us() / 1000u));
    app_print_elf_sha256();
    console_printf("\n");
    info("ESP-IDF:          ", esp_app_desc.idf_version);
}
