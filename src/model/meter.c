/* Progress: fraction, rate and remaining time, told to the caller's function now and then. */
#include "run.h"

#include <math.h>

#ifndef ARROWQUANT_NO_STDIO

#define AQ_METER_INTERVAL 0.1 /* seconds */

AQ_LIB void aq_meter_begin(aq_meter *meter, aq_progress_fn report, void *user, uint64_t total) {
    memset(meter, 0, sizeof(*meter));
    meter->report = report;
    meter->user = user;
    meter->total = total;
    meter->layer = "";
    meter->started = aq_clock_seconds();
    meter->last = meter->started;
}

AQ_LIB aq_status aq_meter_tell(aq_meter *meter, uint64_t extra, bool forced, aq_error *err) {
    aq_progress progress;
    double now, fraction;
    if (!meter->report) return AQ_OK;
    now = aq_clock_seconds();
    if (!forced && now - meter->last < AQ_METER_INTERVAL) return AQ_OK;
    meter->last = now;
    uint64_t done = meter->done + extra < meter->total ? meter->done + extra : meter->total;
    fraction = meter->total ? (double)done / (double)meter->total : 1.0;
    if (fraction > meter->fraction) meter->fraction = fraction;
    progress.fraction = meter->fraction;
    progress.phase = meter->phase;
    progress.layer = meter->layer;
    progress.bytes_done = done;
    progress.bytes_total = meter->total;
    progress.elapsed_s = now - meter->started;
    progress.eta_s = (double)NAN;
    if (meter->fraction > 0 && progress.elapsed_s > 0)
        progress.eta_s = progress.elapsed_s * (1 - meter->fraction) / meter->fraction;
    if (meter->report(meter->user, &progress) == 0) return AQ_OK;
    return aq_fail(err, AQ_ERR_CANCELLED, "cancelled by the progress function");
}

#undef AQ_METER_INTERVAL
#endif /* ARROWQUANT_NO_STDIO */
