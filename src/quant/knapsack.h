/* One option for each item, the least error in all within a budget of bytes. */
#ifndef AQ_KNAPSACK_H
#define AQ_KNAPSACK_H

#include "../base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AQ_OPTIONS 5u
#define AQ_NO_OPTION UINT64_MAX /* bytes of an option that there is not */

typedef struct aq_option {
    uint64_t bytes;
    double error; /* finite, ≥ 0 */
} aq_option;

/* options [items][AQ_OPTIONS] → picked [items]. *error is the sum of what was picked, *bound a lower
 * bound of what any choice within the budget has: equal when the choice is proven to be the best, as
 * it nearly always is. Deterministic. AQ_ERR_CONFIGURATION when even the smallest options are too
 * large, and when an item has none. */
AQ_LIB aq_status aq_knapsack(const aq_context *context, const aq_option *options, size_t items,
                             uint64_t budget, uint8_t *picked, double *error, double *bound,
                             aq_error *err);

#ifdef __cplusplus
}
#endif
#endif /* AQ_KNAPSACK_H */
