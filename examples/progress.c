/* Quantizes with a progress callback that shows where the run is and stops it after a time limit.
 * Build and run:
 *     cc -O2 examples/progress.c -o progress -lpthread -lm && ./progress MODEL OUT SECONDS */
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include <stdio.h>
#include <stdlib.h>

/* Called some ten times a second on this thread; anything but 0 stops the run. */
static int on_progress(void *user, const aq_progress *p) {
    const double *limit_s = (const double *)user;
    printf("%5.1f%%  %-10s  %.1f of %.1f MB  %s\n", p->fraction * 100, aq_phase_name(p->phase),
           (double)p->bytes_done / 1e6, (double)p->bytes_total / 1e6, p->layer);
    return p->elapsed_s > *limit_s;
}

int main(int argc, char **argv) {
    aq_config config = aq_config_from_profile(AQ_PROFILE_CLOUD);
    aq_result result;
    aq_error err;
    aq_status status;
    double limit_s;
    if (argc != 4) {
        fprintf(stderr, "usage: progress MODEL OUT SECONDS\n");
        return 2;
    }
    limit_s = strtod(argv[3], NULL);
    config.overwrite = true;
    status = aq_quantize_model(NULL, argv[1], argv[2], &config, on_progress, &limit_s, &result,
                               &err);
    if (status == AQ_ERR_CANCELLED) {
        printf("stopped after %g s, nothing was written\n", limit_s);
        return 1;
    }
    if (status) {
        fprintf(stderr, "%s\n%s\n", err.message, aq_status_hint(err.status));
        return 1;
    }
    printf("%s: %.2f MB in %.2f s\n", result.quantized_path, result.model_size_mb,
           result.quantization_time_s);
    aq_result_free(&result);
    return 0;
}
