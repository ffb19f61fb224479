/* What every guest finds at its boot info pointer; accel/arch/x86_boot.py writes it, little-endian.
 *
 * The pointer is in SI, ESI or RSI and the vCPU's index in DI, EDI or RDI. In protected32 and long64 the stack
 * is as a C function finds it too, so the entry point may be `void _start(uintptr_t index, const struct
 * boot_info *info)`. Interrupts are off. Without an interrupt controller all vCPUs enter at once. */
#ifndef BOOT_INFO_H
#define BOOT_INFO_H

#include <stddef.h>
#include <stdint.h>

#define BOOT_INFO_MAGIC 0x4C434341 /* "ACCL" */
#define BOOT_INFO_VERSION 1

struct boot_info {
    uint32_t magic;
    uint32_t version;
    uint32_t size;         /* bytes of this structure; a later version may have more */
    uint32_t mode_bits;    /* 16, 32 or 64 */
    uint32_t cpu_count;    /* vCPUs in the machine */
    uint32_t stack_size;   /* bytes of stack for each vCPU */
    uint64_t ram_below_4g; /* bytes of RAM from address 0 */
    uint64_t ram_above_4g; /* bytes of RAM from 4 GiB */
    uint64_t entry;        /* address of the entry point */
};

/* The same for 32-bit guests, where a uint64_t needs less alignment. */
_Static_assert(sizeof(struct boot_info) == 48, "boot info as the host writes it");
_Static_assert(offsetof(struct boot_info, ram_below_4g) == 24, "no padding before the 64-bit fields");

#endif
