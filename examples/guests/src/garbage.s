# Bytes that are no instruction.

        .code32
        .globl  _start
_start:
        .fill   64, 1, 0xFF
