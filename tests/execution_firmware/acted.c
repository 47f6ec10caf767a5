/* An esp32 image whose code nobody executes: its descriptor is what counts. */
#include <stdint.h>

struct {
    uint32_t magic, secure_version, reserved[2];
    char version[32], project[32], time[16], date[16], idf[32];
    uint8_t elf_sha256[32];
    uint32_t more[20];
} const app_desc __attribute__((section(".app_desc"), used)) = {
    .magic = 0xABCD5432, .version = "4.5.6", .project = "acted", .idf = "none"};

void _start(void)
{
    for (;;) {
    }
}
