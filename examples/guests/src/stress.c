/* Touch memory in one of several ways, over and over, and check every result, while the host changes the map.
 *
 * The host lays out the touched area and fills it before the start; everything in it stays RAM all the time, so each
 * wrong value is an error of the host. Per vCPU the host says which kind of touch it makes:
 *
 *   READ    words that only the host has written: each must be pattern(address)
 *   WRITE   one word per cell for each vCPU: must be what it wrote in its pass before, then the next value
 *   LOCKED  one word per cell for all vCPUs: a locked addition; the host checks the sums
 *   FETCH   functions in the area: each returns pattern(its address)
 *   WALK    page tables in the area: with them, and after each a fresh CR3, words in eight large pages of low RAM
 *   MIXED   one after the other, each vCPU beginning with another
 *
 * Ends when the host sets `stop`, each vCPU after its pass: status 1 without errors, else 3. There is no interrupt
 * table: a fault while code or page tables cannot be reached is a shutdown, which the host sees. */
#include <stddef.h>

#include "boot_info.h"
#include "ports.h"

enum { READ, WRITE, LOCKED, FETCH, WALK, KINDS, MIXED = KINDS };
enum { GOOD = 0, BAD = 1, MAX_CPUS = 16, LARGE_PAGES = 8 };
#define LARGE_PAGE 0x200000UL
#define LOW_WORD 0x1F0000UL /* where in each large page the word is that WALK reads */

/* An area of equal cells. */
struct cells {
    uint64_t base, count, size;
};

struct control {
    volatile uint64_t stop;                                      /* 0x8000: not 0, finish the pass and end */
    volatile uint64_t errors;                                    /* 0x8008: of all vCPUs */
    volatile uint64_t kind, address, expected, found;            /* 0x8010: the first error */
    volatile uint64_t finished;                                  /* 0x8030: vCPUs that have ended */
    uint64_t tables;                                             /* 0x8038: page tables for WALK */
    struct cells data, written, code;                            /* 0x8040: READ; WRITE and LOCKED; FETCH */
    struct {
        uint64_t kind;                  /* of the touch */
        volatile uint64_t errors, sum;  /* wrong values; sum of all that READ and FETCH found, modulo 2^64 */
        volatile uint64_t passes[KINDS]; /* complete ones, by kind */
    } cpu[MAX_CPUS];                                             /* 0x8088 */
};

_Static_assert(offsetof(struct control, kind) == 0x10, "the host reads from here");
_Static_assert(offsetof(struct control, data) == 0x40, "the host writes from here");
_Static_assert(offsetof(struct control, cpu) == 0x88, "the host writes from here");
_Static_assert(sizeof(((struct control *)0)->cpu[0]) == 0x40, "the host reads these");

static struct control control __attribute__((section(".control"), used));

/* What the host has put at an address: differs from word to word, and is never all ones. */
static uint64_t pattern(uint64_t address)
{
    return (address * 0x9E3779B97F4A7C15UL) >> 1;
}

static void locked_add(volatile uint64_t *word, uint64_t value)
{
    __asm__ volatile("lock addq %1, %0" : "+m"(*word) : "r"(value) : "memory", "cc");
}

static void expect(uint64_t index, uint64_t kind, uint64_t address, uint64_t expected, uint64_t found)
{
    if (found == expected)
        return;
    control.cpu[index].errors++;
    uint64_t count = 1;
    __asm__ volatile("lock xaddq %0, %1" : "+r"(count), "+m"(control.errors) : : "memory", "cc");
    if (count != 0)
        return;
    control.kind = kind;
    control.address = address;
    control.expected = expected;
    control.found = found;
}

static uint64_t get_cr3(void)
{
    uint64_t value;
    __asm__ volatile("movq %%cr3, %0" : "=r"(value));
    return value;
}

/* Forget all translations and use the page tables at `value`. */
static void set_cr3(uint64_t value)
{
    __asm__ volatile("movq %0, %%cr3" : : "r"(value) : "memory");
}

static uint64_t read_pass(uint64_t index, uint64_t at, uint64_t end, uint64_t size)
{
    uint64_t sum = 0;
    for (; at < end; at += size) {
        uint64_t found = *(volatile uint64_t *)at;
        expect(index, READ, at, pattern(at), found);
        sum += found;
    }
    return sum;
}

static uint64_t fetch_pass(uint64_t index, uint64_t at, uint64_t end, uint64_t size)
{
    uint64_t sum = 0;
    for (; at < end; at += size) {
        uint64_t found = ((uint64_t (*)(void))at)();
        expect(index, FETCH, at, pattern(at), found);
        sum += found;
    }
    return sum;
}

static void write_pass(uint64_t index, uint64_t at, uint64_t end, uint64_t size, uint64_t pass)
{
    for (at += 8 * (index + 1); at < end; at += size) {
        volatile uint64_t *word = (volatile uint64_t *)at;
        expect(index, WRITE, at, pass << 32 | (uint32_t)at, *word);
        *word = (pass + 1) << 32 | (uint32_t)at;
    }
}

static void locked_pass(uint64_t at, uint64_t end, uint64_t size)
{
    for (; at < end; at += size)
        locked_add((volatile uint64_t *)at, 1);
}

static void walk_pass(uint64_t index)
{
    uint64_t own = get_cr3();
    for (uint64_t page = 0; page < LARGE_PAGES; page++) {
        uint64_t at = page * LARGE_PAGE + LOW_WORD;
        set_cr3(control.tables);
        expect(index, WALK, at, pattern(at), *(volatile uint64_t *)at);
    }
    set_cr3(own);
}

static void touch(uint64_t index, uint64_t kind)
{
    uint64_t pass = control.cpu[index].passes[kind];
    const struct cells *cells = kind == READ ? &control.data : kind == FETCH ? &control.code : &control.written;
    uint64_t at = cells->base, end = at + cells->count * cells->size, size = cells->size;
    switch (kind) {
    case READ:
        control.cpu[index].sum += read_pass(index, at, end, size);
        break;
    case WRITE:
        write_pass(index, at, end, size, pass);
        break;
    case LOCKED:
        locked_pass(at, end, size);
        break;
    case FETCH:
        control.cpu[index].sum += fetch_pass(index, at, end, size);
        break;
    default:
        walk_pass(index);
    }
    control.cpu[index].passes[kind] = pass + 1;
}

void _start(uint64_t index, const struct boot_info *info)
{
    uint64_t cpus = info->cpu_count;

    if (cpus > MAX_CPUS) {
        if (index != 0)
            park();
        debug_exit(BAD);
    }
    uint64_t kind = control.cpu[index].kind, next = index % KINDS;
    while (!control.stop) {
        touch(index, kind == MIXED ? next : kind);
        next = next + 1 == KINDS ? 0 : next + 1;
    }
    locked_add(&control.finished, 1);
    if (index != 0)
        park();
    while (control.finished < cpus)
        __asm__ volatile("pause");
    debug_exit(control.errors ? BAD : GOOD);
}
