/* Vectors and start-up of a Cortex-M. */
#include <stdint.h>

extern uint32_t _data_from, _data_begin, _data_end, _bss_begin, _bss_end, _stack;
extern int main(void);
extern void exit(int status);
void SysTick_Handler(void);
void start(void);
void stop(void);

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &_stack, (void *)start, (void *)stop, (void *)stop, (void *)stop, (void *)stop, (void *)stop,
    0, 0, 0, 0, (void *)stop, 0, 0, (void *)stop, (void *)SysTick_Handler,
};

void start(void) {
    uint32_t *from = &_data_from, *to = &_data_begin;
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* the floating-point unit */
    while (to < &_data_end) *to++ = *from++;
    for (to = &_bss_begin; to < &_bss_end;) *to++ = 0;
    exit(main());
}

void stop(void) {
    for (;;) {}
}
