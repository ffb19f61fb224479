# Send back each byte that comes in over the serial line, by interrupt: the guest sleeps until the line has
# something for it. Ends at EOT (Ctrl-D) with status 1. Without interrupt controllers it halts for good.

        .include "real16.inc"

        .set    MASTER_COMMAND, 0x20    # two 8259A interrupt controllers, the slave at the master's input 2
        .set    MASTER_DATA, 0x21
        .set    SLAVE_COMMAND, 0xA0
        .set    SLAVE_DATA, 0xA1
        .set    INITIALISE, 0x11        # edge triggered, a slave, four words in all
        .set    MODE_8086, 0x01
        .set    END_OF_INTERRUPT, 0x20
        .set    MASTER_VECTOR, 0x20
        .set    SLAVE_VECTOR, 0x28
        .set    SERIAL_IRQ, 4

        .set    SERIAL_ENABLE, 0x3F9    # interrupt enable register
        .set    SERIAL_MODEM, 0x3FC     # modem control register
        .set    RECEIVED, 0x01          # the same bit in the enable and in the line status register
        .set    LINES_UP, 0x0B          # DTR, RTS, and OUT2, which lets a PC's serial interrupt through

        .set    EOT, 0x04

start:
        first_vcpu_only
        mov     $INITIALISE, %al
        out     %al, $MASTER_COMMAND
        out     %al, $SLAVE_COMMAND
        mov     $MASTER_VECTOR, %al
        out     %al, $MASTER_DATA
        mov     $SLAVE_VECTOR, %al
        out     %al, $SLAVE_DATA
        mov     $1 << 2, %al            # the master is told the input as a mask,
        out     %al, $MASTER_DATA
        mov     $2, %al                 # the slave as a number
        out     %al, $SLAVE_DATA
        mov     $MODE_8086, %al
        out     %al, $MASTER_DATA
        out     %al, $SLAVE_DATA
        mov     $~(1 << SERIAL_IRQ) & 0xFF, %al # a mask bit keeps its line out
        out     %al, $MASTER_DATA
        mov     $0xFF, %al
        out     %al, $SLAVE_DATA

        movw    $received, 4 * (MASTER_VECTOR + SERIAL_IRQ)
        movw    $0, 4 * (MASTER_VECTOR + SERIAL_IRQ) + 2

        mov     $SERIAL_MODEM, %dx
        mov     $LINES_UP, %al
        out     %al, %dx
        mov     $SERIAL_ENABLE, %dx
        mov     $RECEIVED, %al
        out     %al, %dx                # what came before now interrupts as well
        sti
1:      hlt
        jmp     1b

# The line interrupts again only after it was quiet, so all that is there is taken at once.
received:
        push    %ax
        push    %dx
next:
        mov     $SERIAL_STATUS, %dx
        in      %dx, %al
        test    $RECEIVED, %al
        jz      done
        mov     $SERIAL_DATA, %dx
        in      %dx, %al
        cmp     $EOT, %al
        je      end
        mov     %al, %ah
        mov     $SERIAL_STATUS, %dx
2:      in      %dx, %al
        test    $SERIAL_CAN_SEND, %al
        jz      2b
        mov     %ah, %al
        mov     $SERIAL_DATA, %dx
        out     %al, %dx
        jmp     next
done:
        mov     $END_OF_INTERRUPT, %al
        out     %al, $MASTER_COMMAND
        pop     %dx
        pop     %ax
        iret
end:
        debug_exit 0
