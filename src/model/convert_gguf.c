/* Blocks of GGUF and native codes that hold the same numbers, from one to the other. */
#include "../base/text.h"
#include "../quant/quant.h"
#include "convert.h"
#include "staging.h"

#ifndef ARROWQUANT_NO_STDIO

/* ---- blocks become native codes */

AQ_LIB bool aq_convert_has_steps(aq_code code) {
    return code == AQ_CODE_AFFINE || code == AQ_CODE_SYMMETRIC || code == AQ_CODE_ZERO_POINT ||
           code == AQ_CODE_Q8_0 || code == AQ_CODE_Q4_0 || code == AQ_CODE_Q4_1 ||
           code == AQ_CODE_Q4_K;
}

AQ_LIB aq_quant_spec aq_convert_spec(const aq_tensor *tensor) {
    aq_quant_spec spec = tensor->spec;
    if (!aq_code_is_block(spec.code)) return spec;
    bool symmetric = spec.code == AQ_CODE_Q8_0 || spec.code == AQ_CODE_Q4_0;
    spec.params = spec.code == AQ_CODE_Q4_K ? AQ_PARAM_F32 : AQ_PARAM_F16;
    spec.code = symmetric ? AQ_CODE_SYMMETRIC : AQ_CODE_AFFINE;
    spec.group_size = 32;
    return spec;
}

AQ_LIB aq_status aq_convert_blocks(aq_arena *arena, const aq_tensor *from, const char *name,
                                   aq_tensor *out, aq_error *err) {
    aq_code code = from->spec.code;
    *out = *from;
    if (!aq_convert_has_steps(code))
        return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, name, 0,
                              "layer %s: its code %s has levels that no other format holds; quantize "
                              "the original for that format instead", name, from->code_name);
    if (!aq_code_is_block(code)) return AQ_OK;
    out->spec = aq_convert_spec(from);
    out->code_name = aq_code_name(out->spec.code);
    out->extra = NULL;
    aq_status status = aq_quantized_size(&out->spec, from->rows, from->cols, &out->layout, err);
    if (status != AQ_OK) return status;
    void *codes = aq_arena_alloc(arena, (size_t)out->layout.code_bytes + 1);
    void *params = aq_arena_alloc(arena, (size_t)out->layout.param_bytes + 1);
    if (!codes || !params) return aq_fail_memory(err, (size_t)out->layout.code_bytes);
    /* rows are whole blocks, and native ones have no padding then */
    size_t blocks = (size_t)(from->layout.rows * from->layout.groups);
    if (code == AQ_CODE_Q4_K) aq_k_to_native(from->codes, blocks, codes, params);
    else aq_blocks_to_native(code, from->codes, blocks, codes, params);
    out->codes = codes;
    out->params = params;
    return AQ_OK;
}

/* ---- native codes become blocks */

static aq_status aq_to_gguf_refuse(const char *name, const char *why, aq_error *err) {
    return aq_fail_tensor(err, AQ_ERR_UNSUPPORTED, name, 0,
                          "tensor %s: %s; quantize the original with --format gguf instead", name,
                          why);
}

/* Zero points in the middle, which a symmetric code has without saying. */
static bool aq_to_gguf_middle(const aq_quant_spec *spec, const aq_layer_numbers *numbers) {
    float middle = (float)(1u << (spec->bits - 1));
    for (uint64_t i = 0; spec->code != AQ_CODE_SYMMETRIC && i < numbers->groups; i++)
        if (numbers->zeros[i] != middle || numbers->mins[i] != -middle * numbers->scales[i])
            return false;
    return true;
}

/* The block code that may hold this layer's numbers, or AQ_CODE_COUNT and why there is none. */
static aq_code aq_to_gguf_code(const aq_tensor *tensor, const aq_layer_numbers *numbers,
                               const char **why) {
    *why = "its rows are no multiple of 32";
    if (tensor->shape[tensor->rank - 1] % 32) return AQ_CODE_COUNT;
    *why = "GGUF's type of 2 bits has scales of 4 bits";
    if (tensor->spec.bits == 2) return AQ_CODE_COUNT;
    bool middle = aq_to_gguf_middle(&tensor->spec, numbers);
    *why = "GGUF's type of 8 bits has no zero points";
    if (tensor->spec.bits == 8) return middle ? AQ_CODE_Q8_0 : AQ_CODE_COUNT;
    return middle ? AQ_CODE_Q4_0 : AQ_CODE_Q4_1;
}

/* The F16 parameters of each block: a group of 64 and more is several blocks that have the same ones.
 * False when one is no F16 number. `out` has two bytes for each number of a block. */
static bool aq_to_gguf_heads(const aq_tensor *tensor, const aq_layer_numbers *numbers,
                             aq_code code, unsigned char *out) {
    size_t step = code == AQ_CODE_Q4_1 ? 2 : 1, at = 0;
    uint64_t per_row = tensor->cols / 32, groups = tensor->layout.groups;
    for (uint64_t row = 0; row < tensor->layout.rows; row++) {
        for (uint64_t block = 0; block < per_row; block++, at += step) {
            uint64_t group = row * groups + block * 32 / tensor->spec.group_size;
            if (!aq_convert_put(&numbers->scales[group], 1, AQ_DTYPE_F16, 1, out + 2 * at) ||
                (step == 2 &&
                 !aq_convert_put(&numbers->mins[group], 1, AQ_DTYPE_F16, 1, out + 2 * at + 2)))
                return false;
        }
    }
    return true;
}

/* A quantized layer's blocks and their code. `arena` is for this layer. */
static aq_status aq_to_gguf_layer(aq_arena *arena, const aq_tensor *tensor, aq_code *code,
                                  const void **blocks, aq_error *err) {
    aq_layer_numbers numbers;
    const char *why = NULL;
    uint64_t count = tensor->rows * tensor->cols / 32;
    *code = tensor->spec.code;
    *blocks = tensor->codes;
    if (tensor->input_scales)
        return aq_to_gguf_refuse(tensor->name, "its input is equalized, and GGUF has no place for the "
                                 "scales of that", err);
    if (tensor->time_groups)
        return aq_to_gguf_refuse(tensor->name, "GGUF has no place for its time groups", err);
    if (aq_code_is_block(*code)) return AQ_OK;
    if (!aq_convert_has_steps(*code))
        return aq_to_gguf_refuse(tensor->name, "GGUF has no type for its code", err);
    aq_status status = aq_convert_numbers(arena, tensor, &numbers, err);
    if (status != AQ_OK) return status;
    *code = aq_to_gguf_code(tensor, &numbers, &why);
    if (*code == AQ_CODE_COUNT) return aq_to_gguf_refuse(tensor->name, why, err);
    unsigned char *heads = (unsigned char *)aq_arena_alloc(arena, (size_t)count * 4);
    unsigned char *out =
        (unsigned char *)aq_arena_alloc(arena, (size_t)count * aq_block_bytes(*code));
    if (!heads || !out) return aq_fail_memory(err, (size_t)count * aq_block_bytes(*code));
    if (!aq_to_gguf_heads(tensor, &numbers, *code, heads))
        return aq_to_gguf_refuse(tensor->name, "a scale or minimum is no F16 number, as GGUF's types "
                                 "have them", err);
    aq_blocks_from_native(*code, tensor->codes, heads, (size_t)count, out);
    *blocks = out;
    return AQ_OK;
}

/* A tensor of the new file: its type and size. */
typedef struct aq_to_gguf_item {
    const aq_gguf_type *type;
    uint64_t bytes;
} aq_to_gguf_item;

static aq_status aq_to_gguf_plan(const aq_context *context, const aq_tensor *tensor,
                                 const char *name, aq_to_gguf_item *out, aq_error *err) {
    uint64_t count = tensor->rows * tensor->cols;
    if (strlen(name) > AQ_GGUF_NAME_MOST || tensor->rank > AQ_GGUF_RANK || !count)
        return aq_to_gguf_refuse(name, "its name, its rank or its emptiness is beyond GGUF", err);
    if (tensor->quantized) {
        aq_code code;
        const void *blocks;
        aq_arena arena;
        aq_arena_init(&arena, context);
        aq_status status = aq_to_gguf_layer(&arena, tensor, &code, &blocks, err);
        aq_arena_free(&arena);
        if (status != AQ_OK) return status;
        out->type = aq_gguf_type_of_code(code);
    } else { /* readers of image programs do not take BF16; F32 holds it exactly */
        out->type = aq_gguf_type_of(tensor->dtype == AQ_DTYPE_BF16 ? AQ_DTYPE_F32 : tensor->dtype);
    }
    if (!out->type) return aq_to_gguf_refuse(name, "no type that is written holds it", err);
    out->bytes = count / out->type->weights * out->type->bytes;
    return AQ_OK;
}

static aq_status aq_to_gguf_write(const aq_context *context, const aq_file *file, uint64_t offset,
                                  const aq_tensor *tensor, const aq_to_gguf_item *item,
                                  aq_error *err) {
    uint64_t padded = (item->bytes + AQ_GGUF_ALIGNMENT - 1) & ~(uint64_t)(AQ_GGUF_ALIGNMENT - 1);
    const void *from = tensor->data;
    aq_status status = AQ_OK;
    aq_arena arena;
    aq_code code;
    aq_arena_init(&arena, context);
    unsigned char *data = (unsigned char *)aq_arena_alloc(&arena, (size_t)padded);
    if (!data) return aq_fail_memory(err, (size_t)padded);
    memset(data + item->bytes, 0, (size_t)(padded - item->bytes));
    if (tensor->quantized) status = aq_to_gguf_layer(&arena, tensor, &code, &from, err);
    if (!tensor->quantized && tensor->dtype == AQ_DTYPE_BF16) {
        aq_stored_f32(context, tensor->dtype, tensor->data, (float *)(void *)data,
                      (size_t)(item->bytes / sizeof(float)));
        aq_little_endian(data, (size_t)(item->bytes / sizeof(float)), sizeof(float));
    } else if (status == AQ_OK) {
        memcpy(data, from, (size_t)item->bytes);
    }
    if (status == AQ_OK) status = aq_file_write(file, offset, data, (size_t)padded, err);
    aq_arena_free(&arena);
    return status;
}

/* The type that holds most weights, by llama.cpp's number. */
static uint32_t aq_to_gguf_file_type(const aq_model *model, const aq_to_gguf_item *items) {
    uint64_t weights[AQ_CODE_COUNT + 1] = { 0 }, plain[3] = { 0 };
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_gguf_type *type = items[i].type;
        uint64_t count = model->tensors[i].rows * model->tensors[i].cols;
        if (type->dtype == AQ_DTYPE_F32) plain[0] += count;
        else if (type->dtype == AQ_DTYPE_F16) plain[1] += count;
        else if (type->dtype == AQ_DTYPE_BF16) plain[2] += count;
        else weights[type->code] += count;
    }
    return aq_gguf_file_type(weights, plain);
}

static bool aq_to_gguf_has(const void *user, const char *name) {
    return aq_model_find((const aq_model *)user, name) != NULL;
}

/* Names of diffusers that readers of GGUF do not know: these tensors would have to be stacked. */
static aq_status aq_to_gguf_names(const aq_model *model, const char **architecture,
                                  aq_error *err) {
    const aq_gguf_architecture *known = aq_gguf_detect(NULL, aq_to_gguf_has, model);
    aq_gguf_naming naming;
    aq_gguf_rename renamed;
    memset(&naming, 0, sizeof(naming));
    naming.family = known ? known->family : AQ_GGUF_FAMILY_NONE;
    naming.has = aq_to_gguf_has;
    naming.user = model;
    *architecture = known ? known->name : "unknown";
    for (size_t i = 0; i < model->tensor_count; i++) {
        const char *name = model->tensors[i].name;
        if (aq_gguf_rename_tensor(&naming, name, &renamed) && strcmp(renamed.name, name) != 0)
            return aq_to_gguf_refuse(name, "readers of GGUF expect the names of the original "
                                     "checkpoint, and tensors stacked as there", err);
    }
    return AQ_OK;
}

static aq_status aq_to_gguf_file(const aq_model *model, const char *path, const char *architecture,
                                 aq_arena *arena, aq_error *err) {
    const aq_context *context = model->state->context;
    aq_to_gguf_item *items =
        (aq_to_gguf_item *)aq_arena_alloc(arena, (model->tensor_count + 1) * sizeof(*items));
    aq_builder header;
    aq_file file = AQ_FILE_CLOSED;
    uint64_t offset = 0;
    aq_status status = items ? AQ_OK : aq_fail_memory(err, model->tensor_count);
    for (size_t i = 0; status == AQ_OK && i < model->tensor_count; i++)
        status = aq_to_gguf_plan(context, &model->tensors[i], model->tensors[i].name, &items[i],
                                 err);
    if (status != AQ_OK) return status;
    aq_builder_init(&header, context);
    aq_gguf_begin(&header, model->tensor_count, 4);
    aq_gguf_put_string(&header, "general.architecture", architecture);
    aq_gguf_put_string(&header, "general.quantized_by", "ArrowQuant " AQ_VERSION);
    aq_gguf_put_u32(&header, "general.quantization_version", 2);
    aq_gguf_put_u32(&header, "general.file_type", aq_to_gguf_file_type(model, items));
    for (size_t i = 0; i < model->tensor_count; i++) {
        const aq_tensor *tensor = &model->tensors[i];
        aq_gguf_output output;
        memset(&output, 0, sizeof(output));
        output.name = tensor->name;
        output.type = items[i].type->id;
        output.rank = tensor->rank ? tensor->rank : 1;
        output.shape[0] = 1;
        for (uint32_t d = 0; d < tensor->rank; d++) output.shape[d] = tensor->shape[d];
        output.offset = offset;
        aq_gguf_put_tensor(&header, &output);
        offset += (items[i].bytes + AQ_GGUF_ALIGNMENT - 1) & ~(uint64_t)(AQ_GGUF_ALIGNMENT - 1);
    }
    aq_gguf_end(&header);
    if (status == AQ_OK && header.failed) status = aq_fail_memory(err, header.size);
    if (status == AQ_OK) status = aq_file_create(&file, path, err);
    if (status == AQ_OK) status = aq_file_write(&file, 0, header.data, header.size, err);
    offset = header.size;
    for (size_t i = 0; status == AQ_OK && i < model->tensor_count; i++) {
        status = aq_to_gguf_write(context, &file, offset, &model->tensors[i], &items[i], err);
        offset += (items[i].bytes + AQ_GGUF_ALIGNMENT - 1) & ~(uint64_t)(AQ_GGUF_ALIGNMENT - 1);
    }
    if (status == AQ_OK) status = aq_file_sync(&file, err);
    (void)aq_file_close(&file, NULL);
    aq_builder_free(&header);
    return status;
}

AQ_LIB aq_status aq_convert_to_gguf(const aq_model *model, const char *input_path,
                                    const char *output_path, bool overwrite, aq_error *err) {
    aq_staging staging;
    aq_arena arena;
    const char *architecture = NULL;
    bool is_file = model->state->folder.kind == AQ_FOLDER_FILE;
    if (!aq_ends_with(output_path, ".gguf"))
        return aq_fail(err, AQ_ERR_ARGUMENT, "%s: a model becomes one GGUF file; give a name that "
                       "ends in .gguf", output_path);
    memset(&staging, 0, sizeof(staging));
    staging.lock.handle = -1;
    aq_arena_init(&arena, model->state->context);
    aq_status status = aq_to_gguf_names(model, &architecture, err);
    if (status == AQ_OK)
        status = aq_staging_begin(&staging, model->state->context,
                                  is_file ? input_path : model->state->folder.root, output_path,
                                  "model.gguf", overwrite, false, err);
    if (status == AQ_OK) {
        char *path = aq_path_join(&arena, staging.folder, "model.gguf");
        status = path ? aq_to_gguf_file(model, path, architecture, &arena, err)
                      : aq_fail_memory(err, 0);
    }
    if (status == AQ_OK) status = aq_staging_commit(&staging, err);
    aq_staging_end(&staging);
    aq_arena_free(&arena);
    return status;
}

#endif /* ARROWQUANT_NO_STDIO */
