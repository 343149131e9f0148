/* Which tensors get which bits, and why. */
#ifndef AQ_POLICY_H
#define AQ_POLICY_H

#include "folder.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

typedef struct aq_decision {
    uint32_t bits; /* 2, 3, 4, 8; 16: keep */
    aq_reason reason;
    const char *detail; /* the rule or pattern that decided, or "" */
} aq_decision;

/* `name` as the file has it; rows and cols as DESIGN sees it: [d0, d1·d2·…]. */
AQ_LIB aq_decision aq_decide(const aq_config *config, const char *name, aq_dtype dtype,
                             uint32_t rank, uint64_t rows, uint64_t cols);
/* What a layer gets that misses a gate at these bits. */
AQ_LIB uint32_t aq_more_bits(const aq_config *config, uint32_t bits);
/* The built-in rule by which a name is sensitive, or NULL. Words are whole: "ahead" is no "head". */
AQ_LIB const char *aq_sensitive_rule(const char *name);
/* Does an entry of sensitive_layers name this tensor: itself, its module, or a module above? */
AQ_LIB bool aq_names_layer(const char *entry, const char *tensor);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_POLICY_H */
