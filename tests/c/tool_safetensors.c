/* Prints safetensors headers as one line of JSON each, or the error.
 *     tool_safetensors FILE…   reads files
 *     tool_safetensors -       images from stdin, each 4 bytes of size (little endian) and data */
#include "test.h"

static void print_header(const aq_st_file *file, aq_builder *out) {
    aq_append_string(out, "{\"tensors\":[");
    for (size_t i = 0; i < file->tensor_count; i++) {
        const aq_st_tensor *tensor = &file->tensors[i];
        aq_append_string(out, i ? ",{\"name\":" : "{\"name\":");
        aq_append_json_string(out, tensor->name, strlen(tensor->name));
        aq_append_format(out, ",\"dtype\":\"%s\",\"shape\":[", aq_dtype_name(tensor->dtype));
        for (uint32_t d = 0; d < tensor->rank; d++)
            aq_append_format(out, "%s%llu", d ? "," : "", (unsigned long long)tensor->shape[d]);
        aq_append_format(out, "],\"offset\":%llu,\"bytes\":%llu}",
                         (unsigned long long)tensor->offset, (unsigned long long)tensor->bytes);
    }
    aq_append_string(out, "],\"metadata\":");
    if (file->metadata) aq_append_json_string(out, file->metadata, file->metadata_size);
    else aq_append_string(out, "null");
    aq_append_string(out, "}\n");
}

static void print_error(const aq_error *err, aq_builder *out) {
    aq_append_string(out, "{\"error\":\"");
    aq_append_string(out, aq_status_name(err->status));
    aq_append_string(out, "\",\"message\":");
    aq_append_json_string(out, err->message, strlen(err->message));
    aq_append_string(out, "}\n");
}

static void print_result(aq_status status, const aq_st_file *file, const aq_error *err) {
    aq_builder out;
    aq_builder_init(&out, NULL);
    if (status == AQ_OK) print_header(file, &out);
    else print_error(err, &out);
    fwrite(out.data, 1, out.size, stdout);
    aq_builder_free(&out);
}

static void read_images(void) {
    unsigned char prefix[4];
    while (fread(prefix, 1, 4, stdin) == 4) {
        size_t size = prefix[0] | (size_t)prefix[1] << 8 | (size_t)prefix[2] << 16 |
                      (size_t)prefix[3] << 24;
        unsigned char *image = (unsigned char *)malloc(size ? size : 1);
        aq_arena arena;
        aq_st_file file;
        aq_error err;
        CHECK(image != NULL && fread(image, 1, size, stdin) == size);
        if (test_broken) return;
        memset(&err, 0, sizeof(err));
        aq_arena_init(&arena, NULL);
        aq_status status = aq_st_parse(&arena, image, size, "image", &file, &err);
        print_result(status, &file, &err);
        aq_arena_free(&arena);
        free(image);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "-") == 0) {
        read_images();
        return test_broken;
    }
    for (int i = 1; i < argc; i++) {
        aq_arena arena;
        aq_st_file file;
        aq_error err;
        memset(&err, 0, sizeof(err));
        aq_arena_init(&arena, NULL);
        aq_status status = aq_st_read_header(&arena, argv[i], &file, &err);
        print_result(status, &file, &err);
        aq_arena_free(&arena);
    }
    return 0;
}
