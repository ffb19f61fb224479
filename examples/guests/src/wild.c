/* Touch addresses and ports where there is nothing: reads give all ones and writes vanish.
 *
 * Prints "ok" and ends with status 1; else says where something was and ends with status 3. */
#include "boot_info.h"
#include "ports.h"
#include "print.h"

enum { NOTHING = 0xE0000000, NO_PORT = 0x5000, GOOD = 0, BAD = 1 };

static void expect(uint64_t value, uint64_t expected, uint64_t where)
{
    if (value == expected)
        return;
    print("wild: found ");
    print_hex(value);
    print(" at ");
    print_hex(where);
    print("\n");
    debug_exit(BAD);
}

/* Read 8, 4, 2 and 1 bytes. */
static void expect_nothing(uint64_t address)
{
    expect(*(volatile uint64_t *)address, UINT64_MAX, address);
    expect(*(volatile uint32_t *)address, UINT32_MAX, address);
    expect(*(volatile uint16_t *)address, UINT16_MAX, address);
    expect(*(volatile uint8_t *)address, UINT8_MAX, address);
}

void _start(uint64_t index, const struct boot_info *info)
{
    (void)info;
    if (index != 0)
        park();
    /* The second lies in the middle of a page, the third crosses into the next one. */
    static const uint64_t addresses[] = {NOTHING, NOTHING + 0x1234568, NOTHING + 0xFFD};
    for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        expect_nothing(addresses[i]);
        *(volatile uint64_t *)addresses[i] = 0x0123456789abcdef;
        *(volatile uint8_t *)addresses[i] = 0;
        expect_nothing(addresses[i]);
    }
    expect(in8(NO_PORT), UINT8_MAX, NO_PORT);
    expect(in16(NO_PORT), UINT16_MAX, NO_PORT);
    expect(in32(NO_PORT), UINT32_MAX, NO_PORT);
    out8(NO_PORT, 0);
    print("ok\n");
    debug_exit(GOOD);
}
