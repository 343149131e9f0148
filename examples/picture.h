/* Writes 8-bit pictures, grey (1 channel) or RGB (3), as PNG or, when the name ends so, PGM/PPM. */
#ifndef PICTURE_H
#define PICTURE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* A PNG in the making: the checksum of the chunk, and that of all its image data. */
typedef struct picture {
    FILE *file;
    uint32_t crc, low, high;
} picture;

static void picture_put(picture *p, const void *data, size_t size) {
    const uint8_t *byte = (const uint8_t *)data;
    size_t i;
    int bit;
    for (i = 0; i < size; i++) {
        p->crc ^= byte[i];
        for (bit = 0; bit < 8; bit++) {
            p->crc = p->crc >> 1 ^ (p->crc & 1u ? UINT32_C(0xEDB88320) : 0u);
        }
    }
    fwrite(data, 1, size, p->file);
}

static void picture_put_u32(picture *p, uint32_t value) {
    uint8_t bytes[4];
    bytes[0] = (uint8_t)(value >> 24);
    bytes[1] = (uint8_t)(value >> 16);
    bytes[2] = (uint8_t)(value >> 8);
    bytes[3] = (uint8_t)value;
    picture_put(p, bytes, 4);
}

static void picture_open_chunk(picture *p, const char *type, size_t size) {
    picture_put_u32(p, (uint32_t)size);
    p->crc = UINT32_C(0xFFFFFFFF);
    picture_put(p, type, 4);
}

static void picture_close_chunk(picture *p) {
    picture_put_u32(p, ~p->crc);
}

/* A line is stored uncompressed, in a block of its own. */
static void picture_put_line(picture *p, const uint8_t *line, size_t size, int last) {
    uint8_t head[6];
    size_t i, n = size + 1; /* and the filter type before it */
    head[0] = (uint8_t)(last ? 1 : 0);
    head[1] = (uint8_t)n;
    head[2] = (uint8_t)(n >> 8);
    head[3] = (uint8_t)~head[1];
    head[4] = (uint8_t)~head[2];
    head[5] = 0;
    picture_put(p, head, 6);
    picture_put(p, line, size);
    p->high = (p->high + p->low) % 65521u;
    for (i = 0; i < size; i++) {
        p->low = (p->low + line[i]) % 65521u;
        p->high = (p->high + p->low) % 65521u;
    }
}

static void picture_put_png(picture *p, const uint8_t *pixels, size_t width, size_t height,
                            size_t channels) {
    const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    uint8_t kind[5] = {8, 0, 0, 0, 0};
    size_t line = width * channels, y;
    kind[1] = channels == 3 ? 2 : 0;
    fwrite(signature, 1, 8, p->file);
    picture_open_chunk(p, "IHDR", 13);
    picture_put_u32(p, (uint32_t)width);
    picture_put_u32(p, (uint32_t)height);
    picture_put(p, kind, 5);
    picture_close_chunk(p);
    picture_open_chunk(p, "IDAT", 2 + height * (line + 6) + 4);
    picture_put(p, "\x78\x01", 2);
    p->low = 1;
    p->high = 0;
    for (y = 0; y < height; y++) picture_put_line(p, pixels + y * line, line, y + 1 == height);
    picture_put_u32(p, p->high << 16 | p->low);
    picture_close_chunk(p);
    picture_open_chunk(p, "IEND", 0);
    picture_close_chunk(p);
}

/* 0 when it fails. A line may have at most 65534 bytes. */
static int picture_write(const char *path, const uint8_t *pixels, size_t width, size_t height,
                         size_t channels) {
    size_t length = strlen(path);
    const char *end = length > 4 ? path + length - 4 : path;
    picture p;
    int good;
    if (width * channels > 65534u || height == 0 || width == 0) return 0;
    memset(&p, 0, sizeof p);
    p.file = fopen(path, "wb");
    if (!p.file) return 0;
    if (strcmp(end, ".pgm") == 0 || strcmp(end, ".ppm") == 0) {
        fprintf(p.file, "P%d\n%u %u\n255\n", channels == 3 ? 6 : 5, (unsigned)width,
                (unsigned)height);
        fwrite(pixels, 1, width * height * channels, p.file);
    } else {
        picture_put_png(&p, pixels, width, height, channels);
    }
    good = !ferror(p.file);
    return fclose(p.file) == 0 && good;
}

#endif
