/* Send back each byte that comes in over the serial line, until EOT (Ctrl-D); then end with status 1. */
#include "boot_info.h"
#include "ports.h"

enum { EOT = 0x04 };

void _start(uint32_t index, const struct boot_info *info)
{
    (void)info;
    if (index != 0)
        park();
    for (;;) {
        while (!(in8(SERIAL_STATUS) & SERIAL_RECEIVED))
            ;
        uint8_t byte = in8(SERIAL_DATA);
        if (byte == EOT)
            debug_exit(0);
        while (!(in8(SERIAL_STATUS) & SERIAL_CAN_SEND))
            ;
        out8(SERIAL_DATA, byte);
    }
}
