/* Loads one static program for Linux from the disk of a bare x86-64 machine, and is as much of a
 * system for it as a test needs: memory, standard output, an end. No threads, no files.
 *
 * Sector 64 of the disk: size of the program, number of arguments, of variables (u64 each), then
 * their texts, each with its NUL. The program begins in sector 65. What it prints goes to port
 * 0xE9, which Bochs shows on its own standard output. */
#include <elf.h>
#include <stddef.h>
#include <stdint.h>

#define HEADER_SECTOR 64
#define IMAGE ((unsigned char *)0x10000000) /* where the file is read to: 256 MiB */
#define STACK_TOP ((uint64_t *)0x0FF00000)
#define TEXTS ((char *)0x0FF00000)
#define HEAP 0x14000000u
#define MEMORY 0x1F000000u /* of 512 MiB */

void bare_main(void);
int64_t bare_system_call(const uint64_t *word);
void bare_enter(uint64_t entry, uint64_t *stack);

static uint64_t heap_end = HEAP, map_begin = MEMORY;

static void out8(uint16_t port, uint8_t value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void set_register(uint32_t number, uint64_t value) {
    __asm__ volatile("wrmsr" : : "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

void *memset(void *to, int value, size_t size) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t size) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

static void print(const char *text, size_t size) {
    while (size-- > 0) {
        out8(0xE9, (uint8_t)*text++);
    }
}

static void print_text(const char *text) {
    size_t size = 0;
    while (text[size]) {
        size++;
    }
    print(text, size);
}

static void print_number(uint64_t number) {
    char digits[20];
    size_t count = 0;
    do {
        digits[sizeof digits - ++count] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    print(digits + sizeof digits - count, count);
}

/* Bochs ends when it reads this word at this port. */
static void end(uint64_t status) {
    const char *word = "Shutdown";
    print_text("\nbare: exit status ");
    print_number(status);
    print_text("\n");
    for (;;) {
        for (word = "Shutdown"; *word; word++) {
            out8(0x8900, (uint8_t)*word);
        }
    }
}

/* By the ports of the first ATA drive. */
static void read_sectors(uint32_t first, uint32_t count, unsigned char *to) {
    while (count > 0) {
        uint32_t now = count < 128 ? count : 128, i;
        out8(0x1F6, (uint8_t)(0xE0 | first >> 24));
        out8(0x1F2, (uint8_t)now);
        out8(0x1F3, (uint8_t)first);
        out8(0x1F4, (uint8_t)(first >> 8));
        out8(0x1F5, (uint8_t)(first >> 16));
        out8(0x1F7, 0x20);
        for (i = 0; i < now; i++) {
            size_t words = 256;
            void *at = to + 512 * (size_t)i;
            while ((in8(0x1F7) & 0x88) != 0x08) {
            }
            __asm__ volatile("rep insw" : "+D"(at), "+c"(words) : "d"((uint16_t)0x1F0) : "memory");
        }
        first += now, count -= now, to += 512 * (size_t)now;
    }
}

static void load_segments(const Elf64_Ehdr *head) {
    const Elf64_Phdr *part = (const Elf64_Phdr *)(IMAGE + head->e_phoff);
    size_t i;
    for (i = 0; i < head->e_phnum; i++) {
        if (part[i].p_type == PT_LOAD) {
            unsigned char *to = (unsigned char *)part[i].p_vaddr;
            memcpy(to, IMAGE + part[i].p_offset, part[i].p_filesz);
            memset(to + part[i].p_filesz, 0, part[i].p_memsz - part[i].p_filesz);
        }
    }
}

/* Pointers to `count` texts, and 0. */
static uint64_t *put_texts(uint64_t *stack, char **text, uint64_t count) {
    while (count-- > 0) {
        *stack++ = (uint64_t)*text;
        while (*(*text)++) {
        }
    }
    *stack++ = 0;
    return stack;
}

void bare_main(void) {
    unsigned char sector[512];
    const Elf64_Ehdr *head = (const Elf64_Ehdr *)IMAGE;
    uint64_t number[3], *stack = STACK_TOP - 256, *at = stack;
    char *text = TEXTS;
    read_sectors(HEADER_SECTOR, 1, sector);
    memcpy(number, sector, sizeof number);
    memcpy(text, sector + sizeof number, sizeof sector - sizeof number);
    read_sectors(HEADER_SECTOR + 1, (uint32_t)((number[0] + 511) / 512), IMAGE);
    load_segments(head);
    *at++ = number[1];
    at = put_texts(at, &text, number[1]);
    at = put_texts(at, &text, number[2]);
    *at++ = AT_PHDR, *at++ = (uint64_t)(IMAGE + head->e_phoff);
    *at++ = AT_PHENT, *at++ = sizeof(Elf64_Phdr);
    *at++ = AT_PHNUM, *at++ = head->e_phnum;
    *at++ = AT_PAGESZ, *at++ = 4096;
    *at++ = AT_ENTRY, *at++ = head->e_entry;
    *at++ = AT_RANDOM, *at++ = (uint64_t)TEXTS;
    *at++ = AT_SECURE, *at++ = 0;
    *at++ = AT_NULL, *at++ = 0;
    bare_enter(head->e_entry, stack);
}

/* ---------------------------------------------------------------- calls of the program */

static int64_t set_break(uint64_t to) {
    if (to >= HEAP && to < map_begin) {
        if (to > heap_end) {
            memset((void *)heap_end, 0, to - heap_end);
        }
        heap_end = to;
    }
    return (int64_t)heap_end;
}

static int64_t map(uint64_t size) {
    size = (size + 4095) & ~(uint64_t)4095;
    if (size > map_begin - heap_end) {
        return -12;
    }
    map_begin -= size;
    memset((void *)map_begin, 0, size);
    return (int64_t)map_begin;
}

static int64_t unmap(uint64_t at, uint64_t size) {
    if (at == map_begin) {
        map_begin += (size + 4095) & ~(uint64_t)4095;
    }
    return 0;
}

static int64_t write_parts(const uint64_t *part, uint64_t count) {
    int64_t sum = 0;
    for (; count > 0; count--, part += 2) {
        print((const char *)part[0], part[1]);
        sum += (int64_t)part[1];
    }
    return sum;
}

/* Seconds and nanoseconds, if a cycle took one. */
static int64_t tell_time(uint64_t *time) {
    uint32_t low, high;
    uint64_t count;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    count = (uint64_t)high << 32 | low;
    time[0] = count / 1000000000u, time[1] = count % 1000000000u;
    return 0;
}

static int64_t tell_names(char *names) {
    memset(names, 0, 6 * 65);
    memcpy(names, "Linux", 5);
    memcpy(names + 2 * 65, "6.1.0", 5); /* the C library asks for its release */
    return 0;
}

/* Numbers of Linux on x86-64. */
int64_t bare_system_call(const uint64_t *word) {
    switch (word[0]) {
    case 1: print((const char *)word[2], word[3]); return (int64_t)word[3]; /* write */
    case 9: return word[5] == UINT64_MAX || (uint32_t)word[5] == UINT32_MAX ? map(word[2]) : -12;
    case 11: return unmap(word[1], word[2]);
    case 12: return set_break(word[1]);
    case 20: return write_parts((const uint64_t *)word[2], word[3]); /* writev */
    case 39: case 186: case 218: return 1;                           /* who am I */
    case 60: case 231: end(word[1]); return 0;                       /* exit */
    case 63: return tell_names((char *)word[1]);
    case 158: /* arch_prctl */
        if (word[1] != 0x1002) {
            return -22;
        }
        set_register(0xC0000100, word[2]);
        return 0;
    case 228: return tell_time((uint64_t *)word[2]);
    case 234: end(128 + word[3]); return 0; /* tgkill: abort */
    case 318: memset((void *)word[1], 4, word[2]); return (int64_t)word[2];
    case 3: case 10: case 13: case 14: case 202: case 273: return 0; /* close, signals, futex, … */
    default: return -38;
    }
}
