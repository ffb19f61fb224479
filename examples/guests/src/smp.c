/* All vCPUs count together in shared memory; the first one waits for the others and checks the sum.
 *
 * Needs every vCPU to enter here at once, so no interrupt controller. Prints "4 vCPUs counted to 20000" and
 * ends with status 1; with status 3 if an increment got lost. */
#include "boot_info.h"
#include "ports.h"
#include "print.h"

enum { TOTAL = 20000, GOOD = 0, BAD = 1 };

/* Shared by all vCPUs; changed by locked instructions only. */
static volatile uint64_t arrived, counter, finished;

static void locked_increment(volatile uint64_t *word)
{
    __asm__ volatile("lock incq %0" : "+m"(*word) : : "memory", "cc");
}

static void wait_for(volatile uint64_t *word, uint64_t value)
{
    while (*word < value)
        __asm__ volatile("pause");
}

void _start(uint64_t index, const struct boot_info *info)
{
    uint64_t cpus = info->cpu_count;
    uint64_t share = TOTAL / cpus + (index < TOTAL % cpus); /* the first few take the remainder */

    locked_increment(&arrived);
    wait_for(&arrived, cpus); /* so that they count at the same time, not one after the other */
    while (share--)
        locked_increment(&counter);
    locked_increment(&finished);
    if (index != 0)
        park();

    wait_for(&finished, cpus);
    print_decimal(cpus);
    print(" vCPUs counted to ");
    print_decimal(counter);
    print("\n");
    debug_exit(counter == TOTAL ? GOOD : BAD);
}
