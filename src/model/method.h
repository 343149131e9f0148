/* How the codes of each layer are chosen: the decision, and what a run needs for it. */
#ifndef AQ_MODEL_METHOD_H
#define AQ_MODEL_METHOD_H

#include "plan.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* What the config asks for and no layer can have: AQ_ERR_CONFIGURATION. After the bits are known. */
AQ_LIB aq_status aq_plan_check_methods(const aq_plan *plan, aq_error *err);
/* Sets tensor->method and method_detail by config, spec and statistics. */
AQ_LIB void aq_plan_method(const aq_plan *plan, aq_plan_tensor *tensor);

/* Second moments are known and fit into memory, and the code is one of ours. */
AQ_LIB bool aq_gptq_is_possible(const aq_plan *plan, const aq_plan_tensor *tensor);
/* model/allocate.c: whether the config has a budget; chooses the bits under it, when all tensors are
 * decided and laid out once. Reads the weights. */
AQ_LIB bool aq_plan_has_budget(const aq_config *config);
AQ_LIB aq_status aq_plan_allocate(aq_plan *plan, aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_MODEL_METHOD_H */
