/*
WHAT IT IS
    Takes a diffusion model in safetensors (a Hugging Face folder, a diffusers pipeline, one file),
    writes it with 2, 4 or 8 bits a weight, measures how good the result is, and reads it back; or
    does that to one matrix in memory, on anything from a Cortex-M up. C99 or C++11, libc only.

HOW TO USE IT
    Put this file into your project. In exactly one C or C++ file write
        #define ARROWQUANT_IMPLEMENTATION
        #include "arrowquant.h"
    and plain #include "arrowquant.h" wherever else you need it. On Unix link -lpthread -lm.

A COMPLETE PROGRAM (cc -O2 first.c -o first -lpthread -lm)
    #define ARROWQUANT_IMPLEMENTATION
    #include "arrowquant.h"
    #include <stdio.h>

    static float weights[64 * 1024], back[64 * 1024];
    static unsigned char codes[32768], params[2048];  // sizes: layout.code_bytes, .param_bytes

    int main(void) {
        uint64_t rows = 64, cols = 1024, i;
        aq_quant_spec spec = { AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 128,  // INT4, groups of 128
                               AQ_FIT_LEAST_SQUARES, 0, 0 };
        aq_quant_layout layout;
        aq_quality quality;
        aq_error err;
        for (i = 0; i < rows * cols; i++)
            weights[i] = (float)((i * 2654435761u >> 7) % 2001) / 1000.0f - 1.0f;
        if (aq_quantized_size(&spec, rows, cols, &layout, &err) != AQ_OK ||
            layout.code_bytes > sizeof codes || layout.param_bytes > sizeof params ||
            aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, rows, cols, NULL, codes, params, NULL,
                        &quality, &err) != AQ_OK ||
            aq_dequantize(NULL, &spec, codes, params, NULL, rows, cols, AQ_DTYPE_F32, back,
                          &err) != AQ_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        printf("%d weights in %d bytes, SQNR %.2f dB, first weight %.3f -> %.3f\n",
               (int)(rows * cols), (int)(layout.code_bytes + layout.param_bytes),
               aq_quality_sqnr_db(&quality), (double)weights[0], (double)back[0]);
        return 0;
    }

A WHOLE MODEL
        aq_config config = aq_config_from_profile(AQ_PROFILE_EDGE);  // local: INT4, cloud: INT8
        if (aq_quantize_model(NULL, "dit/", "dit-int2/", &config, NULL, NULL, NULL, &err) != AQ_OK)
            fprintf(stderr, "%s: %s\n", err.message, aq_status_hint(err.status));
    aq_plan_create/_execute/_commit are its three steps, aq_validate_quality compares two models,
    aq_model_open reads a result. examples/aq.c is the command-line tool, docs/FORMAT.md the bytes.

COMPILE-TIME SWITCHES (define before the #include, the same ones in every file)
    ARROWQUANT_IMPLEMENTATION  compile the library here; the only one that belongs in a single file
    ARROWQUANT_STATIC          every function static: each file that includes it has its own copy
    ARROWQUANT_API             linkage of the public functions, such as __declspec(dllexport)
    ARROWQUANT_MALLOC(size), ARROWQUANT_REALLOC(pointer, size), ARROWQUANT_FREE(pointer)
                               in place of malloc and its kin: all three or none
    ARROWQUANT_ASSERT(x)       in place of assert
    ARROWQUANT_NO_STDIO        no files: tensors and configs only, no operating system needed
    ARROWQUANT_NO_THREADS      no pthreads: one thread does all
    ARROWQUANT_NO_SIMD         portable C only; ARROWQUANT_NO_AVX512 leaves out just that
    No switch changes a struct, and none changes a result.

ERRORS
    What can fail returns an aq_status and takes an aq_error of yours as its last argument (or
    NULL): status, message (file, tensor, expected, found, remedy), tensor, offset. No globals.

OWNERSHIP
    aq_quantize and aq_dequantize allocate nothing: the buffers are yours. What a function hands
    out has one function that frees it: aq_plan_destroy, aq_result_free, aq_model_close,
    aq_validation_free, aq_text_free, aq_config_free, aq_context_destroy. Strings and lists in a
    config that you filled yourself stay yours.

THREADS
    Every function may be called from any thread. An aq_context holds what calls share (kernels,
    allocator, number of threads, log) and may serve several threads at once; NULL is the default
    one. Plans and models are read by any number of threads, changed and freed by one. Large
    tensors use all cores (context->num_threads); callbacks come on the thread that called.

NUMBERS
    A tensor [d0, d1, ...] is d0 rows of d1*d2*... columns, cut into groups along the row. The bits
    of a result do not depend on the machine, the instruction set or the number of threads, nor on
    locale or rounding mode. NaN or infinity in a weight is an error, never a surprise.

LICENSE
    MIT or public domain, as you like: see the end of this file.
*/
