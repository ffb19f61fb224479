/* What adding and deleting a memory slot costs in C, beside slots that stay.
 *
 *   slots PAIRS
 *   slots turns OTHERS
 *
 * Each pair adds RAM next to a slot that is there, and deletes it again: the calls that growing and shrinking a RAM
 * region come to. The first form has one slot of 1 MiB that stays, and prints one line of JSON; `seconds` is the time
 * of all pairs. The second has OTHERS slots of a page that stay, and takes turns (benchmarks/turns.py): it reads lines
 * "SIDE COUNT", makes COUNT calls, in pairs beside one slot after the other, and answers with the seconds of each.
 */
#include "common.h"

enum { BASE = 0x10000000, PART = 1 << 20, PAGE = 4096, STRIDE = 8 * PAGE };

static void run_pairs(int vm, long pairs)
{
    char *ram = map_ram(2 * PART);

    set_slot(vm, 0, BASE, PART, ram);
    double started = seconds();
    for (long i = 0; i < pairs; i++) {
        set_slot(vm, 1, BASE + PART, PART, ram + PART);
        set_slot(vm, 1, BASE + PART, 0, ram + PART);
    }
    double ended = seconds();

    printf("{\"seconds\": %.9f, \"pairs\": %ld, \"peak_kib\": %ld}\n", ended - started, pairs, peak_kib());
}

static void take_turns(int vm, long others)
{
    char *ram = map_ram((size_t)others * STRIDE);
    char line[256];
    long count, at = 0;

    for (long i = 0; i < others; i++)
        set_slot(vm, i, BASE + i * STRIDE, PAGE, ram + i * STRIDE);
    printf("{}\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) && sscanf(line, "%*s %ld", &count) == 1) {
        printf("{\"costs\": [");
        long done = 0;
        for (; done + 2 <= count; done += 2, at++) {
            /* A prime stride, so that no two turns meet the same slots in the same order. */
            long offset = at * 7919 % others * STRIDE + PAGE;
            double started = seconds();
            set_slot(vm, others, BASE + offset, PAGE, ram + offset);
            double between = seconds();
            set_slot(vm, others, BASE + offset, 0, ram + offset);
            double ended = seconds();
            printf("%s%.9f, %.9f", done ? ", " : "", between - started, ended - between);
        }
        printf("], \"done\": %ld, \"peak_kib\": %ld}\n", done, peak_kib());
        fflush(stdout);
    }
}

int main(int count, char **arguments)
{
    int turns = count > 2 && !strcmp(arguments[1], "turns");
    long number = count > 1 ? strtol(arguments[1 + turns], NULL, 0) : 0;

    if (number < 1)
        return fprintf(stderr, "usage: slots PAIRS | slots turns OTHERS\n"), 2;
    int kvm, vm = create_vm(&kvm);
    if (turns)
        take_turns(vm, number);
    else
        run_pairs(vm, number);
    return 0;
}
