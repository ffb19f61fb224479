/* The ports that example guests talk to, and the two ways in which a guest ends. */
#ifndef PORTS_H
#define PORTS_H

#include <stdint.h>

enum {
    SERIAL_DATA = 0x3F8,   /* 16550: transmit on write, receive on read */
    SERIAL_STATUS = 0x3FD, /* 16550 line status register */
    DEBUG_EXIT = 0xF4,     /* a write of v ends the run with status (v << 1) | 1 */

    SERIAL_RECEIVED = 0x01, /* line status: a byte waits to be read */
    SERIAL_CAN_SEND = 0x20, /* line status: the transmitter takes a byte */
};

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* Stop this vCPU for good. Interrupts are off at entry and stay off; an NMI would only go round the loop. */
static inline void __attribute__((noreturn)) park(void)
{
    for (;;)
        __asm__ volatile("cli; hlt" : : : "memory");
}

/* End the whole run with exit status (value << 1) | 1. */
static inline void __attribute__((noreturn)) debug_exit(uint8_t value)
{
    out8(DEBUG_EXIT, value);
    park(); /* the run ends while this vCPU may still execute a little */
}

#endif
