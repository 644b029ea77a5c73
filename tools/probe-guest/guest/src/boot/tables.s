# Everything the processor wants to find in memory, laid out by the assembler so that ring 0 has nothing to compute:
# on some hosts ring 0 is emulated at a million instructions a second. The addresses are constants because link.ld
# places `.boot` at 0x200000.
#
#   +0x0000  entry stubs, 16 bytes per vector, 48 vectors (they jump into traps.s)
#   +0x1000  32 task state segments, 128 bytes apart
#   +0x2000  the one I/O permission bitmap they share: all zero, so ring 3 may use every port
#   +0x4100  descriptor tables
#   +0x5000  page tables: an identity map of 512 GiB, open to ring 3

.set BASE, 0x200000
.set MAX_CPUS, 32
# A page each: see `Counters` in shared.rs.
.set RING0_STACK_BYTES, 4096
.set USER_STACK_BYTES, 32768
.set TRAMPOLINE, 0x8000
.set SEL_CODE32, 0x08
.set SEL_CODE64, 0x10
.set SEL_DATA, 0x18
.set SEL_USER_DATA, 0x23
.set SEL_USER_CODE, 0x2b
.set SEL_TSS, 0x30
.set TIMER_VECTOR, 32

.section .boot, "awx", @progbits
.balign 4096
boot_start:
.code64
.set i, 0
.rept 32
    .balign 16
    # Vectors 8, 10-14, 17, 21, 29 and 30 push an error code themselves.
    .if (0x60227d00 >> i) & 1
    .else
        push 0
    .endif
    push i
    jmp fault
    .set i, i + 1
.endr
    .balign 16
    jmp timer                           # TIMER_VECTOR
.rept 15
    .balign 16
    jmp spurious
.endr

.org 0x1000
task_states:
.set i, 0
.rept MAX_CPUS
    .long 0
    .quad ring0_stacks + (i + 1) * RING0_STACK_BYTES
    .fill 90, 1, 0
    .word 0x1000 - i * 128              # I/O bitmap, from the start of this segment
    .fill 24, 1, 0
    .set i, i + 1
.endr

.org 0x2000
    .fill 8192, 1, 0
    .byte 0xff                          # the processor reads one byte past the bitmap

.org 0x4100
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # 0x08 ring 0 code, 32-bit
    .quad 0x00af9b000000ffff            # 0x10 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff            # 0x18 ring 0 data
    .quad 0x00cff3000000ffff            # 0x20 ring 3 data
    .quad 0x00affb000000ffff            # 0x28 ring 3 code, 64-bit
.set i, 0
.rept MAX_CPUS
    .word 0x1000 - i * 128 + 8192       # limit: up to and including the byte past the bitmap
    .word 0x1000 + i * 128
    .byte 0x20, 0x89, 0, 0              # base bits 16..23 are BASE's
    .quad 0
    .set i, i + 1
.endr
gdt_end:

.balign 16
idt:
.set i, 0
.rept 48
    .word i * 16                        # stub address bits 0..15
    .word SEL_CODE64
    .byte 0, 0x8e                       # interrupt gate: arrives with interrupts off
    .word 0x20                          # stub address bits 16..31 are BASE's
    .quad 0
    .set i, i + 1
.endr
idt_end:

.balign 16
gdt_register:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 16
idt_register:
    .word idt_end - idt - 1
    .quad idt
.balign 16
no_idt_register:
    .word 0
    .quad 0
.balign 4
next_cpu:
    .long 1

# Present, writable, user; accessed and dirty already set, so that the hardware (or a shadow pager) never writes here.
.org 0x5000
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
pdpt:
    .quad page_directories + 0x0027
    .quad page_directories + 0x1027
    .quad page_directories + 0x2027
    .quad page_directories + 0x3027
.set i, 4
.rept 508                               # 1 GiB pages; touched only where RAM or a device is
    .quad (i << 30) + 0xe7
    .set i, i + 1
.endr
page_directories:
.set i, 0
.rept 2048                              # 2 MiB pages for the first 4 GiB: works on every 64-bit CPU
    .quad (i << 21) + 0xe7
    .set i, i + 1
.endr

.section .bss.stacks, "aw", @nobits
.balign 4096
.global user_stacks
ring0_stacks:
    .skip MAX_CPUS * RING0_STACK_BYTES
user_stacks:
    .skip MAX_CPUS * USER_STACK_BYTES
crash_stack:
    .skip 16384
crash_stack_top:
