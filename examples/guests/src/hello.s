# Print a line over the serial port, then end with status 1.

        .include "real16.inc"

start:
        first_vcpu_only
        mov     $text, %si              # the boot info's address is not needed
        cld
next:
        mov     $SERIAL_STATUS, %dx
1:      in      %dx, %al                # as a driver does: wait until the line can send
        test    $SERIAL_CAN_SEND, %al
        jz      1b
        lodsb
        test    %al, %al
        jz      done
        mov     $SERIAL_DATA, %dx
        out     %al, %dx
        jmp     next
done:
        debug_exit 0

text:   .asciz  "Hello, accel!\n"
