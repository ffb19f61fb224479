/* Touch memory in rounds and check every word that is read, while the host changes the map under it.
 *
 * Every vCPU has a word of its own in each cell of the region. In each round it reads the word, compares it
 * with what it wrote in the round before, and writes the next value. So a read that was not served from the
 * RAM (all ones, say) is an error in that round, and a write that vanished is one in the next, whatever the
 * other vCPUs do. With LOCKED, all vCPUs also add to one word per cell with a locked instruction, and at the
 * end the sums must be what they added: a locked instruction that was torn apart loses counts.
 *
 * The control block is at a fixed address. The host sets the parameters before the start, watches the progress,
 * and writes `stop`. Ends with status 1 if there were no errors, else with status 3. */
#include <stddef.h>

#include "boot_info.h"
#include "ports.h"
#include "print.h"

enum { GOOD = 0, BAD = 1, LOCKED = 1, MAX_CPUS = 64, WORD = 8 };

struct control {
    /* 0x8000: progress, written by the guest */
    volatile uint64_t rounds_done; /* complete rounds of vCPU 0 */
    volatile uint64_t errors;      /* of all vCPUs */
    /* 0x8010: written by the host at any time */
    volatile uint64_t stop; /* not 0: finish the round and report */
    /* 0x8018: parameters, written by the host before the start */
    uint64_t base;   /* region, touched from here on */
    uint64_t size;   /* bytes */
    uint64_t stride; /* bytes from cell to cell; a cell has 8 bytes per vCPU, and 8 more */
    uint64_t rounds; /* 0: until stop */
    uint64_t flags;  /* LOCKED, or 0 */
    /* 0x8040: the first error, once `errors` is not 0 */
    volatile uint64_t error_address, error_expected, error_found;
    /* 0x8058: vCPUs that are ready, and that have finished */
    volatile uint64_t ready, finished;
    /* 0x8068: complete rounds of each vCPU */
    volatile uint64_t rounds_of[MAX_CPUS];
};

_Static_assert(offsetof(struct control, stop) == 0x10, "the host writes here");
_Static_assert(offsetof(struct control, base) == 0x18, "the host writes from here");
_Static_assert(offsetof(struct control, error_address) == 0x40, "the host reads from here");
_Static_assert(offsetof(struct control, rounds_of) == 0x68, "the host reads from here");

static struct control control __attribute__((section(".control"), used)) = {
    .base = 0x10000000,
    .size = 0x100000,
    .stride = 0x4000,
    .rounds = 50,
};

/* Add to a shared word with a locked instruction; return what was there before. */
static uint64_t locked_add(volatile uint64_t *word, uint64_t value)
{
    __asm__ volatile("lock xaddq %0, %1" : "+r"(value), "+m"(*word) : : "memory", "cc");
    return value;
}

/* What a vCPU's word holds after a round: differs by word and by round, and is never all ones. */
static uint64_t pattern(uint64_t address, uint64_t round)
{
    return round << 32 | (uint32_t)address;
}

static void expect(uint64_t found, uint64_t expected, uint64_t address)
{
    if (found == expected || locked_add(&control.errors, 1) != 0)
        return;
    control.error_address = address;
    control.error_expected = expected;
    control.error_found = found;
}

static void touch(uint64_t word, uint64_t round, int locked)
{
    uint64_t end = control.base + control.size;
    for (uint64_t cell = control.base; cell < end; cell += control.stride) {
        volatile uint64_t *own = (volatile uint64_t *)(cell + word);
        if (round != 0) /* round 0 only fills */
            expect(*own, pattern((uint64_t)own, round - 1), (uint64_t)own);
        *own = pattern((uint64_t)own, round);
        if (locked && round != 0)
            locked_add((volatile uint64_t *)cell, 1);
    }
}

/* vCPU 0, when the others have finished: every cell's shared word must have all that was added to it. */
static void check_sums(uint64_t cpus)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < cpus; i++)
        sum += control.rounds_of[i];
    for (uint64_t cell = control.base; cell < control.base + control.size; cell += control.stride)
        expect(*(volatile uint64_t *)cell, sum, cell);
}

static void report(void)
{
    print("touch: rounds=");
    print_decimal(control.rounds_done);
    print(" errors=");
    print_decimal(control.errors);
    if (control.errors) {
        print(", first at ");
        print_hex(control.error_address);
        print(": expected ");
        print_hex(control.error_expected);
        print(", found ");
        print_hex(control.error_found);
    }
    print("\n");
}

static void wait_for(volatile uint64_t *word, uint64_t value)
{
    while (*word < value)
        __asm__ volatile("pause");
}

void _start(uint64_t index, const struct boot_info *info)
{
    uint64_t cpus = info->cpu_count;
    int locked = (control.flags & LOCKED) != 0;

    if (cpus > MAX_CPUS || control.stride < WORD * (cpus + 1) || control.size % control.stride != 0) {
        if (index != 0)
            park();
        print("touch: bad parameters\n");
        debug_exit(BAD);
    }
    touch(WORD * (index + 1), 0, 0);
    if (index == 0) /* no vCPU adds to the shared words before all are ready */
        for (uint64_t cell = control.base; cell < control.base + control.size; cell += control.stride)
            *(volatile uint64_t *)cell = 0;
    locked_add(&control.ready, 1);
    wait_for(&control.ready, cpus);

    for (uint64_t round = 1; !control.stop && (control.rounds == 0 || round <= control.rounds); round++) {
        touch(WORD * (index + 1), round, locked);
        control.rounds_of[index] = round;
        if (index == 0)
            control.rounds_done = round;
    }
    locked_add(&control.finished, 1);
    if (index != 0)
        park();

    wait_for(&control.finished, cpus);
    if (locked)
        check_sums(cpus);
    report();
    debug_exit(control.errors ? BAD : GOOD);
}
