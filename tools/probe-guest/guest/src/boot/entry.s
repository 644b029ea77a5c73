# From the PVH entry (32-bit, paging off, ebx = hvm_start_info) or a start-up IPI (real mode) to ring 3, in as few
# instructions as it takes. Both paths meet in `to_long_mode` with ebp = CPU number, edi = start info or 0.

.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18                      # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .boot, "awx", @progbits
.balign 16
.global ap_trampoline, ap_trampoline_end
.code16
ap_trampoline:                          # runs at TRAMPOLINE, where ring 3 has copied it
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16        # lgdtd [disp16]
    .word TRAMPOLINE + (trampoline_gdt_register - ap_trampoline)
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                    # far jump, 32-bit offset
    .long ap_start
    .word SEL_CODE32
.balign 4
trampoline_gdt_register:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

.code32
ap_start:
    mov eax, SEL_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor edi, edi
    mov ebp, 1
    lock xadd dword ptr [next_cpu], ebp
    cmp ebp, MAX_CPUS
    jb to_long_mode
surplus:
    cli
    hlt
    jmp surplus

.global pvh_start
pvh_start:
    cli
    cld
    mov edi, ebx
    xor ebp, ebp
to_long_mode:
    lea eax, [pml4]
    mov cr3, eax
    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080                 # EFER.LME
    xor edx, edx
    mov eax, 0x100
    wrmsr
    lgdt [gdt_register]
    mov eax, 0x80010033                 # PG, WP, NE, ET, MP, PE; caches on
    mov cr0, eax
    .byte 0xea                          # far jump
    .long in_long_mode
    .word SEL_CODE64

.code64
in_long_mode:
    mov eax, SEL_DATA
    mov ss, eax
    mov eax, SEL_USER_DATA
    mov ds, eax
    mov es, eax
    lidt [idt_register]
    mov eax, ebp
    shl eax, 4
    add eax, SEL_TSS
    ltr ax
    mov esi, ebp
    lea ecx, [rbp + 1]
    mov eax, ecx
    shl eax, 12                         # RING0_STACK_BYTES
    lea rsp, [rax + ring0_stacks]
    shl ecx, 15                         # USER_STACK_BYTES
    lea rcx, [rcx + user_stacks]
    push SEL_USER_DATA
    push rcx
    push 2                              # interrupts stay off in ring 3: they arrive in the idle service only
    push SEL_USER_CODE
    lea rax, [ring3_start]
    push rax
    iretq

ring3_start:                            # edi = start info, esi = CPU number
    xor ebp, ebp
    call ring3_main
    ud2
