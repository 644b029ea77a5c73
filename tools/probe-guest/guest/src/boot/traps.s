# What ring 0 does after the start. Ring 3 reaches it by the one `ud2` at `service_call` (neither syscall nor int gets
# through on every host, faults do); any other fault is handed back to ring 3 as a crash report.

.section .boot, "awx", @progbits

.balign 16
.code64
# Ring 3 calls this like a function. eax = service, ecx/edx = arguments; returns eax; clobbers rcx, rdx.
.global service_call
service_call:
service_ud2:
    ud2
    ret

fault:                                  # stack: vector, error code, rip, cs, rflags, rsp, ss
    cmp qword ptr [rsp + 16], offset service_ud2
    je service
    cmp qword ptr [rsp + 16], offset service_wrmsr
    je wrmsr_refused
    lock bts dword ptr [crash_taken], 0
    jc stop
    pop rdi                             # vector
    pop rsi                             # error code
    mov rdx, [rsp]                      # rip
    mov rcx, cr2
    mov r8, [rsp + 24]                  # rsp
    mov r9, [rsp + 8]                   # cs
    lea rax, [crash_stack_top - 8]
    push SEL_USER_DATA
    push rax
    push 2
    push SEL_USER_CODE
    lea rax, [ring3_crash]
    push rax
    iretq
stop:
    cli
    hlt
    jmp stop

service:
    add rsp, 16
    add qword ptr [rsp], 2
    test eax, eax
    jz service_idle
    cmp eax, 1
    je service_write_msr
    lidt [no_idt_register]              # service 2: triple fault, the reset of last resort
    ud2

service_idle:                           # ecx = LAPIC timer count; nothing can come between arming and halting
    mov edx, 0xfee00380
    mov [rdx], ecx
    sti
    hlt
    iretq

service_write_msr:                      # ecx = MSR, edx:r8d = value
    mov eax, r8d
service_wrmsr:
    wrmsr
    xor eax, eax
    iretq
wrmsr_refused:                          # back to ring 3 with eax = 1
    mov rsp, [rsp + 40]                 # drop the inner frame; what is left is the one from ring 3
    mov eax, 1
    iretq

timer:                                  # interrupts only arrive while service_idle halts; rdx is its to clobber
    push rax
    push rdx
    xor eax, eax
    mov edx, 0xfee000b0                 # EOI
    mov [rdx], eax
    pop rdx
    pop rax
spurious:
    iretq

.balign 4
crash_taken:
    .long 0
