/* First code of a bare x86-64 machine: the BIOS loads its first sector, which loads the rest,
 * turns on 64-bit mode and the vector registers up to those of AVX-512, and calls bare_main. */
    .code16
    .section .boot, "ax"
    .globl bare_start
bare_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7C00, %sp
    movb $0x42, %ah             /* the drive is still in dl */
    movw $packet, %si
    int $0x13
    jc failed
    inb $0x92, %al              /* address line 20 */
    orb $2, %al
    outb %al, $0x92

    movw $0x1000, %di           /* page tables at 0x1000, 0x2000, 0x3000: the first GiB is itself */
    xorl %eax, %eax
    movw $0xC00, %cx
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movw $0x3000, %di
    movl $0x83, %eax            /* present, writable, 2 MiB */
    movw $512, %cx
1:  movl %eax, (%di)
    addl $0x200000, %eax
    addw $8, %di
    loop 1b

    movl $0x40620, %eax         /* CR4: PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
    movl %eax, %cr4
    movl $0x1000, %eax
    movl %eax, %cr3
    movl $0xC0000080, %ecx      /* EFER: SCE, LME */
    rdmsr
    orl $0x101, %eax
    wrmsr
    lgdt table
    movl $0x80000023, %eax      /* CR0: PG, NE, MP, PE */
    movl %eax, %cr0
    ljmp $8, $long_mode
failed:
    hlt
    jmp failed

    .balign 4
packet:
    .byte 16, 0
    .word 63                    /* sectors after this one */
    .word 0x7E00, 0
    .quad 1
segments:
    .quad 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF
table:
    .word 23
    .long segments
    .org 510
    .word 0xAA55

    .code64
long_mode:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movq $0x7C00, %rsp
    fninit
    xorl %ecx, %ecx             /* XCR0: x87, SSE, AVX, AVX-512 */
    xorl %edx, %edx
    movl $0xE7, %eax
    xsetbv
    movl $0xC0000081, %ecx      /* STAR, LSTAR, FMASK: where `syscall` leads */
    xorl %eax, %eax
    movl $8, %edx
    wrmsr
    incl %ecx
    movl $system_call, %eax
    xorl %edx, %edx
    wrmsr
    movl $0xC0000084, %ecx
    movl $0x700, %eax
    wrmsr
    call bare_main
    jmp failed

/* The program runs with the rights of a kernel: a call stays on its stack, below the red zone. */
system_call:
    leaq -128(%rsp), %rsp
    pushq %rcx
    pushq %rbx
    pushq %r9
    pushq %r8
    pushq %r10
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rax
    movq %rsp, %rbx
    movq %rsp, %rdi
    andq $-16, %rsp
    call bare_system_call
    movq %rbx, %rsp
    addq $8, %rsp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %r10
    popq %r8
    popq %r9
    popq %rbx
    popq %rcx
    leaq 128(%rsp), %rsp
    jmp *%rcx

/* bare_enter(entry, stack) */
    .globl bare_enter
bare_enter:
    movq %rsi, %rsp
    xorl %edx, %edx
    xorl %ebp, %ebp
    jmp *%rdi
    .section .note.GNU-stack, "", @progbits
