/* tool_dit MODEL VECTORS float|dynamic OUT: single passes of a DiT (examples/dit.h) over the tensors
 * forward.x, forward.timestep and forward.class of a safetensors file; raw F32. */
#include "test.h"

#include "examples/dit_load.h"

static int64_t integer(const aq_tensor *tensor, size_t i) {
    int64_t value;
    memcpy(&value, (const uint8_t *)tensor->data + 8 * i, 8);
    aq_little_endian(&value, 1, 8);
    return value;
}

static int run(dit_folder *folder, const aq_model *vectors, FILE *out) {
    const aq_tensor *x = aq_model_find(vectors, "forward.x");
    const aq_tensor *timestep = aq_model_find(vectors, "forward.timestep");
    const aq_tensor *classes = aq_model_find(vectors, "forward.class");
    const size_t pixels = folder->model.channels * folder->model.size * folder->model.size;
    float *in = (float *)malloc(pixels * sizeof(float)), *eps = (float *)malloc(pixels * 8);
    void *block = malloc(dit_lay_out(&folder->model, 1, NULL, NULL));
    dit_memory memory;
    size_t i;
    int good = in && eps && block && x && timestep && classes;
    if (good) {
        (void)dit_lay_out(&folder->model, 1, block, &memory);
    }
    for (i = 0; good && i < x->rows; i++) {
        int label = (int)integer(classes, i);
        good = aq_tensor_dequantize(NULL, x, i, 1, AQ_DTYPE_F32, in, NULL) == AQ_OK &&
               dit_forward(&folder->model, in, (float)integer(timestep, i), &label, 1, eps,
                           &memory) &&
               fwrite(eps, sizeof(float), pixels, out) == pixels;
    }
    free(in);
    free(eps);
    free(block);
    return good;
}

int main(int argc, char **argv) {
    dit_folder folder;
    aq_model *vectors = NULL;
    FILE *out;
    int good;
    if (argc != 5) {
        return 2;
    }
    good = dit_load(NULL, argv[1], &folder);
    if (!good) {
        fprintf(stderr, "%s\n", folder.message);
    }
    folder.model.activation = strcmp(argv[3], "dynamic") == 0 ? AQ_ACTIVATION_DYNAMIC
                                                              : AQ_ACTIVATION_FLOAT;
    good = good && aq_model_open(NULL, argv[2], &vectors, NULL) == AQ_OK;
    out = good ? fopen(argv[4], "wb") : NULL;
    good = out && run(&folder, vectors, out);
    if (out && fclose(out)) {
        good = 0;
    }
    aq_model_close(vectors);
    dit_unload(&folder);
    return good ? 0 : 1;
}
