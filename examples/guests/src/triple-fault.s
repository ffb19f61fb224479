# A fault with no interrupt table: it faults while it is delivered, and so does the fault about that.

        .code64
        .globl  _start
_start:
        lidt    empty(%rip)
        ud2

empty:  .short  0                       # limit: no entry fits
        .quad   0
