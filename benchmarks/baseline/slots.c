/* What adding and deleting a memory slot costs in C, beside one slot that stays.
 *
 *   slots PAIRS
 *
 * Each pair adds 1 MiB of RAM next to 1 MiB that is there, and deletes it again: the calls that growing and shrinking
 * a RAM region come to. Prints one line of JSON; `seconds` is the time of all pairs.
 */
#include "common.h"

enum { BASE = 0x10000000, PART = 1 << 20 };

int main(int count, char **arguments)
{
    if (count < 2)
        return fprintf(stderr, "usage: slots PAIRS\n"), 2;
    long pairs = strtol(arguments[1], NULL, 0);
    int kvm, vm = create_vm(&kvm);
    char *ram = map_ram(2 * PART);

    set_slot(vm, 0, BASE, PART, ram);
    double started = seconds();
    for (long i = 0; i < pairs; i++) {
        set_slot(vm, 1, BASE + PART, PART, ram + PART);
        set_slot(vm, 1, BASE + PART, 0, ram + PART);
    }
    double ended = seconds();

    printf("{\"seconds\": %.9f, \"pairs\": %ld, \"peak_kib\": %ld}\n", ended - started, pairs, peak_kib());
    return 0;
}
