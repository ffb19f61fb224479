# Write text to PORT for ever, as fast as it goes.

        .include "real16.inc"

start:
        first_vcpu_only
        cld
        mov     $PORT, %dx
again:
        mov     $text, %si
        mov     $text_end - text, %cx
1:      lodsb
        out     %al, %dx
        loop    1b
        jmp     again

text:   .ascii  "A guest that never stops talking.\n"
text_end:
