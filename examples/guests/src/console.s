# Print a line on the debug console, which is write-only and so can be coalesced, then end in one of three ways.
# ENDING: 0 debug exit, 1 spin, 2 halt. The last two never leave by themselves: the line must show all the same.

        .include "real16.inc"

start:
        first_vcpu_only
        mov     $text, %si
        mov     $text_end - text, %cx
        cld
1:      lodsb
        out     %al, $DEBUG_CONSOLE
        loop    1b

        .if     ENDING == 0
        debug_exit 0
        .elseif ENDING == 1
2:      jmp     2b
        .else
        park
        .endif

text:   .ascii  "Hello, accel!\n"
text_end:
