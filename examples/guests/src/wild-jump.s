# Execution goes on where there is no memory.

        .code64
        .globl  _start
_start:
        mov     $0xE0000000, %eax
        jmp     *%rax
