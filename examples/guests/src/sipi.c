/* vCPU 0 starts all others as a PC's firmware does, by INIT and SIPI through its local APIC.
 *
 * The others wait for that where there are interrupt controllers. They enter in real mode, count themselves and
 * halt. Prints "4 vCPUs started" and ends with status 1; with status 3 if there is no local APIC, or if more
 * vCPUs came than there are. */
#include "boot_info.h"
#include "ports.h"
#include "print.h"

enum { GOOD = 0, BAD = 1 };

enum {
    APIC_VERSION = 0xFEE00030,
    APIC_SPURIOUS = 0xFEE000F0, /* spurious interrupt vector, and the switch */
    APIC_COMMAND = 0xFEE00300,  /* low half of the interrupt command register; a write sends */

    APIC_ENABLED = 0x1FF, /* the switch, and vector 0xff */

    COMMAND_INIT = 0x000C4500, /* to all but myself */
    COMMAND_SIPI = 0x000C4600, /* the same; the low byte says in which page to start */
    COMMAND_PENDING = 0x1000,
};

/* Counts the others. In the first 64 KiB, where real mode reaches it without a segment. */
static volatile uint32_t started __attribute__((section(".control"), used)) = 0;

/* Where the others start: with CS set to the page, IP to 0, all other segments to 0 and interrupts off. */
extern const char trampoline[];
__asm__(".section .trampoline, \"ax\"\n"
        ".globl trampoline\n"
        ".code16\n"
        "trampoline:\n"
        "    lock incl started\n"
        "1:  cli\n"
        "    hlt\n"
        "    jmp 1b\n"
        ".code64\n"
        ".text\n");

static volatile uint32_t *apic(uintptr_t address)
{
    return (volatile uint32_t *)address;
}

static void command(uint32_t value)
{
    *apic(APIC_COMMAND) = value;
    while (*apic(APIC_COMMAND) & COMMAND_PENDING)
        __asm__ volatile("pause");
}

void _start(uint64_t index, const struct boot_info *info)
{
    if (index != 0)
        park(); /* only without interrupt controllers, where vCPU 0 says so */
    if (*apic(APIC_VERSION) == UINT32_MAX) {
        print("sipi: no local APIC\n");
        debug_exit(BAD);
    }
    *apic(APIC_SPURIOUS) = APIC_ENABLED;
    if (info->cpu_count > 1) {
        /* Real processors need 10 ms between the two, and a second SIPI; virtual ones take them as they come. */
        command(COMMAND_INIT);
        command(COMMAND_SIPI | (uint32_t)((uintptr_t)trampoline >> 12));
    }
    while (started < info->cpu_count - 1)
        __asm__ volatile("pause");
    print_decimal(started + 1);
    print(" vCPUs started\n");
    debug_exit(started == info->cpu_count - 1 ? GOOD : BAD);
}
