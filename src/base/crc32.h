/* CRC-32 (the one of zlib and PNG: reflected 0xEDB88320), in pieces that can be joined. */
#ifndef AQ_CRC32_H
#define AQ_CRC32_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The register behind `size` bytes, a multiple of 64 and not 0; neither it nor `crc` is inverted. */
typedef uint32_t (*aq_crc32_fn)(uint32_t crc, const unsigned char *bytes, size_t size);

/* 8 KiB, made in microseconds and shared by threads: no mutable global, no table in the source. */
typedef struct aq_crc32_tables {
    uint32_t table[8][256];
    aq_crc32_fn fast; /* or NULL: for long data */
} aq_crc32_tables;

AQ_LIB aq_crc32_fn aq_crc32_fast(void); /* by this machine's own instructions, or NULL */
AQ_LIB void aq_crc32_init(aq_crc32_tables *tables);
/* Start with crc 0; feed the result back in to go on. */
AQ_LIB uint32_t aq_crc32(const aq_crc32_tables *tables, uint32_t crc, const void *data,
                         size_t size);
/* crc of A followed by B, from crc(A), crc(B) and B's length; O(log length). */
AQ_LIB uint32_t aq_crc32_join(uint32_t first, uint32_t second, uint64_t second_size);

#ifdef __cplusplus
}
#endif
#endif /* AQ_CRC32_H */
