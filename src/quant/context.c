/* The context: which kernels, which allocator, how many threads, whether to stop. */
#include "quant.h"

#include "../base/thread.h"
#include "../simd/simd.h"

#ifndef ARROWQUANT_NO_STDIO
#  include <stdlib.h>
#endif

ARROWQUANT_API const char *aq_isa_name(aq_isa isa) {
    switch (isa) {
    case AQ_ISA_AUTO: return "auto";
    case AQ_ISA_SCALAR: return "scalar";
    case AQ_ISA_AVX2: return "avx2";
    case AQ_ISA_AVX512: return "avx512";
    case AQ_ISA_NEON: return "neon";
    }
    return "unknown";
}

static bool aq_isa_from_name(const char *name, aq_isa *out) {
    int isa;
    for (isa = (int)AQ_ISA_AUTO; isa <= (int)AQ_ISA_NEON; isa++) {
        if (strcmp(name, aq_isa_name((aq_isa)isa)) == 0) {
            *out = (aq_isa)isa;
            return true;
        }
    }
    return false;
}

/* What the environment asks for; AUTO when it says nothing. */
static aq_status aq_isa_from_environment(aq_isa *out, aq_error *err) {
    *out = AQ_ISA_AUTO;
#ifndef ARROWQUANT_NO_STDIO
    {
        const char *name = getenv("ARROW_QUANT_ISA");
        if (name && name[0] && !aq_isa_from_name(name, out)) {
            return aq_fail(err, AQ_ERR_CONFIGURATION,
                           "ARROW_QUANT_ISA is '%s'; use scalar, avx2, avx512, neon or auto", name);
        }
    }
#else
    (void)err;
#endif
    return AQ_OK;
}

static aq_status aq_isa_kernels(aq_isa isa, const struct aq_kernels **kernels, aq_isa *used,
                                aq_error *err) {
    aq_isa wanted = isa;
    if (wanted == AQ_ISA_AUTO) {
        aq_status status = aq_isa_from_environment(&wanted, err);
        if (status != AQ_OK) {
            return status;
        }
    }
    *kernels = aq_simd_kernels(wanted == AQ_ISA_AUTO ? NULL : aq_isa_name(wanted));
    if (!*kernels) {
        return aq_fail(err, AQ_ERR_UNSUPPORTED,
                       "this build or this machine has no %s kernels%s; use scalar or auto",
                       aq_isa_name(wanted), isa == AQ_ISA_AUTO ? " (ARROW_QUANT_ISA)" : "");
    }
    *used = AQ_ISA_SCALAR;
    (void)aq_isa_from_name((*kernels)->name, used);
    return AQ_OK;
}

ARROWQUANT_API aq_status aq_context_create(aq_isa isa, const aq_allocator *allocator,
                                           aq_context **out, aq_error *err) {
    aq_context initial, *context;
    aq_status status;
    if (!out) {
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_context_create: out is NULL");
    }
    *out = NULL;
    memset(&initial, 0, sizeof initial);
    if (allocator) {
        initial.allocator = *allocator;
    }
    status = aq_isa_kernels(isa, &initial.kernels, &initial.isa, err);
    if (status != AQ_OK) {
        return status;
    }
    context = (aq_context *)aq_alloc(allocator ? &initial : NULL, sizeof *context);
    if (!context) {
        return aq_fail_memory(err, sizeof *context);
    }
    *context = initial;
    *out = context;
    return AQ_OK;
}

ARROWQUANT_API void aq_context_destroy(aq_context *context) {
    if (context) {
        aq_context copy = *context; /* the allocator must outlive what it frees */
        aq_free(copy.allocator.resize ? &copy : NULL, context, sizeof *context);
    }
}

ARROWQUANT_API void aq_context_cancel(aq_context *context) {
    if (context) {
        aq_atomic_store(&context->cancel_requested, 1);
    }
}

ARROWQUANT_API void aq_context_reset_cancel(aq_context *context) {
    if (context) {
        aq_atomic_store(&context->cancel_requested, 0);
    }
}

AQ_LIB const struct aq_kernels *aq_kernels_of(const aq_context *context) {
    return context && context->kernels ? context->kernels : aq_simd_kernels(NULL);
}

AQ_LIB aq_context *aq_context_resolved(aq_context *context, aq_context *local) {
    if (context) return context;
    memset(local, 0, sizeof(*local));
    local->kernels = aq_kernels_of(NULL);
    return local;
}
