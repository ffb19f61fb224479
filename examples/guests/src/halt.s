# All vCPUs halt with interrupts off, and nothing can wake them.

        .include "real16.inc"

start:
        park
