/* CRC-32 by eight bytes at a time, or as the machine can, and joining two of them. */
#include "crc32.h"

#define AQ_CRC32_POLYNOMIAL 0xEDB88320u /* reflected: the highest bit is x^0 */

AQ_LIB void aq_crc32_init(aq_crc32_tables *tables) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1u ? AQ_CRC32_POLYNOMIAL : 0u);
        tables->table[0][i] = crc;
    }
    for (int k = 1; k < 8; k++) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = tables->table[k - 1][i];
            tables->table[k][i] = crc >> 8 ^ tables->table[0][crc & 0xFFu];
        }
    }
    tables->fast = aq_crc32_fast();
}

static uint32_t aq_crc32_word(const unsigned char *bytes) {
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 |
           (uint32_t)bytes[3] << 24;
}

AQ_LIB uint32_t aq_crc32(const aq_crc32_tables *tables, uint32_t crc, const void *data,
                         size_t size) {
    const unsigned char *bytes = (const unsigned char *)data;
    const uint32_t(*table)[256] = tables->table;
    crc = ~crc;
    if (tables->fast && size >= 256) { /* below, its beginning and end would cost more */
        crc = tables->fast(crc, bytes, size & ~(size_t)63);
        bytes += size & ~(size_t)63;
        size &= 63;
    }
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t low = crc ^ aq_crc32_word(bytes), high = aq_crc32_word(bytes + 4);
        crc = table[7][low & 0xFFu] ^ table[6][low >> 8 & 0xFFu] ^ table[5][low >> 16 & 0xFFu] ^
              table[4][low >> 24] ^ table[3][high & 0xFFu] ^ table[2][high >> 8 & 0xFFu] ^
              table[1][high >> 16 & 0xFFu] ^ table[0][high >> 24];
    }
    for (; size; size--, bytes++) crc = crc >> 8 ^ table[0][(crc ^ *bytes) & 0xFFu];
    return ~crc;
}

/* a · b modulo the polynomial */
static uint32_t aq_crc32_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (; a; a <<= 1) {
        if (a & 0x80000000u) product ^= b;
        b = b >> 1 ^ (b & 1u ? AQ_CRC32_POLYNOMIAL : 0u);
    }
    return product;
}

/* Appending n bytes multiplies by x^(8n); the inversions at both ends cancel out. */
AQ_LIB uint32_t aq_crc32_join(uint32_t first, uint32_t second, uint64_t second_size) {
    uint32_t square = 0x00800000u; /* x^8 */
    for (; second_size; second_size >>= 1) {
        if (second_size & 1u) first = aq_crc32_multiply(square, first);
        square = aq_crc32_multiply(square, square);
    }
    return first ^ second;
}

#undef AQ_CRC32_POLYNOMIAL
