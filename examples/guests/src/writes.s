# A number of one-byte writes to PORT, then debug exit with status 1: what one write costs is the run's time
# divided by their number. The host may change `writes` before the start, and reads `written` afterwards.

        .include "real16.inc"

start:
        jmp     begin
        .balign 4, 0x90
writes: .long   100000                  # at 0x7C04, offset 4 of the image; 0 stands for 2^32
written:.long   0                       # at 0x7C08: how many were made, the guest's own count, once it is done

begin:
        first_vcpu_only
        mov     writes, %ecx
        mov     $PORT, %dx
        mov     $'.', %al
        xor     %esi, %esi              # a register: where instructions are emulated, memory costs more than the write
1:      out     %al, %dx
        inc     %esi
        addr32 loop 1b
        mov     %esi, written
        debug_exit 0
