/* Arrow IPC messages while they are read. */
#ifndef AQ_ARROW_IPC_H
#define AQ_ARROW_IPC_H

#include "arrow.h"

#ifndef ARROWQUANT_NO_STDIO
#ifdef __cplusplus
extern "C" {
#endif

/* A record batch whose arrays are being made. */
typedef struct aq_ipc_batch {
    aq_arrow_shared *shared; /* of the arrays */
    const char *source;
    size_t number;           /* of the batch, for messages */
    uint64_t position;       /* of its message in the file */
    aq_fb_vector nodes, buffers;
    size_t node, buffer;     /* the next ones */
    const unsigned char *body;
    uint64_t body_size;
    aq_error *err;
} aq_ipc_batch;

/* An array and its children from the batch's next nodes and buffers. */
AQ_LIB aq_status aq_ipc_array(aq_ipc_batch *batch, const struct ArrowSchema *schema,
                              struct ArrowArray *array, const char *column);

#ifdef __cplusplus
}
#endif
#endif /* ARROWQUANT_NO_STDIO */
#endif /* AQ_ARROW_IPC_H */
