/* Text over the 16550 serial line, the way a driver does it: wait until it can send, then send. */
#include "print.h"

#include "ports.h"

static void print_char(char c)
{
    while (!(in8(SERIAL_STATUS) & SERIAL_CAN_SEND))
        ;
    out8(SERIAL_DATA, (uint8_t)c);
}

void print(const char *text)
{
    while (*text)
        print_char(*text++);
}

static void print_number(unsigned long value, unsigned base)
{
    char digits[20]; /* 2^64 - 1 has 20 decimal digits */
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        print_char(digits[--count]);
}

void print_decimal(unsigned long value)
{
    print_number(value, 10);
}

void print_hex(unsigned long value)
{
    print("0x");
    print_number(value, 16);
}
