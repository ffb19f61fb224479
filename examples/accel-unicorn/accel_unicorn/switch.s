# Switches between the stack of a vCPU thread and the stack on which Unicorn runs; x86-64, System V ABI.
# `switch.py` holds these bytes (a test assembles this file and compares) and says what they are for.
# Offsets are those of the control block there.
        .intel_syntax noprefix
        .text

enter:                                  # enter(block): go on where the engine is; returns the event, which is also in it
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [rdi+0x10], rsp
        mov rsp, [rdi+0x08]
        mov rax, [rdi+0x40]
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret

suspend:                                # block in r11, event in rax: go back to where `enter` was called
        mov [r11+0x18], rax
        mov [r11+0x20], rsi
        mov [r11+0x28], rdx
        mov [r11+0x30], rcx
        mov [r11+0x38], r8
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [r11+0x08], rsp
        mov rsp, [r11+0x10]
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret

start:                                  # the bottom of the engine's stack; block in rbx
        mov rdi, [rbx+0x60]
        mov rsi, [rbx+0x68]
        xor edx, edx
        xor ecx, ecx
        xor r8d, r8d
        call [rbx+0x78]
        mov esi, eax
        mov r11, rbx
        mov eax, 4
        call suspend
        jmp start

code:                                   # code(uc, address, size, block)
        inc qword ptr [rcx+0x80]
        mov [rcx+0xf0], rsi
        cmp dword ptr [rcx], 0
        jne 1f
        ret
1:      mov r11, rcx
        mov eax, 2
        jmp suspend

out:                                    # out(uc, port, size, value, block): the record is made here, as `accel.exits` has it
        mov r11, r8
        mov [r11+0xe0], ecx
        movzx eax, dl
        shl eax, 8
        or eax, 1
        shl esi, 16
        or eax, esi
        bts rax, 32
        mov [r11+0xc0], rax
        xor eax, eax
        jmp suspend

in:                                     # in(uc, port, size, block)
        mov r11, rcx
        mov rax, [r11+0x80]             # the instruction that read a port
        mov [r11+0x58], rax
        cmp rax, [r11+0x70]             # the same one begun anew: the answer is still there
        je 1f
        mov qword ptr [r11+0xe0], 0
        movzx eax, dl
        shl eax, 8
        shl esi, 16
        or eax, esi
        bts rax, 32
        mov [r11+0xc0], rax
        xor eax, eax
        push r11
        call suspend
        pop r11
1:      mov eax, [r11+0xe0]
        ret

memory:                                 # memory(uc, type, address, size, value, block)
        mov r11, r9
        mov esi, esi
        mov ecx, ecx
        cmp dword ptr [r11+0xa8], 0     # may it be a simple access?
        je 4f
        cmp esi, 22                     # on a device page or ROM
        jb 4f
        lea eax, [rcx-1]                # and aligned
        test rax, rdx
        jne 4f
        cmp esi, 22                     # and not the write of a zero by an instruction of which nothing is known yet
        jne 5f
        test r8, r8
        jne 5f
        mov r10, [r11+0xf0]
        mov eax, r10d
        and eax, 15
        cmp r10, [r11+rax*8+0x900]
        jne 4f
5:      mov [r11+0xc0], rdx             # the record, as `accel.exits` has it
        mov [r11+0xc8], r8
        xor eax, eax
        cmp esi, 22                     # a write
        sete al
        shl rax, 32
        or rax, rcx
        mov [r11+0xd0], rax
        mov rax, [r11+0xb0]             # the map as it is now
        mov [r11+0xb8], rax
        mov eax, 1
        push r11
        call suspend
        pop r11
        mov rcx, [r11+0xe8]             # note it: instruction, address, shape, value
        inc qword ptr [r11+0xe8]
        and ecx, 63
        shl ecx, 5
        lea rcx, [r11+rcx+0x100]
        mov rax, [r11+0x80]
        mov [rcx], rax
        mov rax, [r11+0xc0]
        mov [rcx+8], rax
        mov rax, [r11+0xd0]
        mov [rcx+16], rax
        mov rdx, [r11+0xc8]
        mov [rcx+24], rdx
        mov rcx, [r11+0xb0]
        cmp rcx, [r11+0xb8]
        jne 3f
        mov [r11+0x88], rdx             # the pieces of a read
        shr rdx, 32
        mov [r11+0x90], rdx
        xor ecx, ecx
        mov [r11+0x50], rcx
        bt rax, 32
        jc 2f
        cmp eax, 8
        sete cl
        inc ecx
2:      mov [r11+0x48], rcx
        mov eax, 1                      # go on
        ret
3:      xor eax, eax                    # the map has changed: give up
        ret
4:      mov eax, 5
        jmp suspend

exception:                              # exception(uc, vector, block)
        mov r11, rdx
        mov esi, esi
        mov eax, 6
        jmp suspend

syscall:                                # syscall(uc, block)
        mov r11, rsi
        mov eax, 7
        jmp suspend

device_read:                            # device_read(uc, offset, size, page): a piece that was prepared, or an event
        mov r11, [rcx]
        cmp dword ptr [r11+0x48], 0
        je 1f
        dec dword ptr [r11+0x48]
        mov rax, [r11+0x50]
        inc qword ptr [r11+0x50]
        mov rax, [r11+rax*8+0x88]
        ret
1:      add rsi, [rcx+8]
        mov edx, edx
        mov eax, 3
        jmp suspend

device_write:                           # device_write(uc, offset, size, value, page): `memory` was told already
        ret
