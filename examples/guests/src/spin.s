# All vCPUs run for ever and never leave by themselves.

        .include "real16.inc"

start:
        jmp     start
