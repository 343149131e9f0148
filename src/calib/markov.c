/* Neighbouring time groups: how far their parameters jump, and ramps in place of the jumps. */
#include "calib.h"
#include "../simd/simd.h"

#include <math.h>

ARROWQUANT_API const char *aq_severity_name(aq_severity severity) {
    return severity == AQ_SEVERITY_HIGH ? "high" : severity == AQ_SEVERITY_MEDIUM ? "medium" : "low";
}

ARROWQUANT_API void aq_markov_measure(const float *scales, const int32_t *zero_points,
                                      uint32_t count, double threshold, aq_markov *out) {
    double sum = 0.0;
    memset(out, 0, sizeof(*out));
    if (count > AQ_TIME_GROUPS_MAX) count = AQ_TIME_GROUPS_MAX;
    for (uint32_t i = 0; i + 1 < count; i++) {
        double left = (double)scales[i];
        double scale_jump = fabs((double)scales[i + 1] - left) / left;
        double zero_jump = fabs((double)zero_points[i + 1] - (double)zero_points[i]) / 255.0;
        double half = (scale_jump + zero_jump) / 2.0;
        out->boundary_scores[i] = 1.0 - (half < 1.0 ? half : 1.0);
        sum += out->boundary_scores[i];
        out->boundary_count++;
        if (!(scale_jump > threshold)) continue;
        aq_markov_violation *violation = &out->violations[out->violation_count++];
        violation->boundary = i;
        violation->scale_jump = scale_jump;
        violation->zero_point_jump = zero_jump;
        violation->severity = scale_jump > 0.5 ? AQ_SEVERITY_HIGH
                              : scale_jump > 0.3 ? AQ_SEVERITY_MEDIUM
                                                 : AQ_SEVERITY_LOW;
    }
    out->smoothness_score = out->boundary_count ? sum / (double)out->boundary_count : 1.0;
    out->is_valid = out->violation_count == 0;
}

AQ_SIMD_EXACT static double aq_ramp(double alpha, aq_interpolation interpolation) {
    AQ_SIMD_EXACT_BODY
    switch (interpolation) {
    case AQ_INTERPOLATION_CUBIC: return alpha * alpha * (3.0 - 2.0 * alpha);
    case AQ_INTERPOLATION_SIGMOID: return 1.0 / (1.0 + exp(-6.0 * (alpha - 0.5)));
    case AQ_INTERPOLATION_LINEAR: break;
    }
    return alpha;
}

/* The share of the step at `boundary` that group `group` has taken. */
static double aq_step_share(uint32_t group, uint32_t boundary, uint32_t count, uint32_t window,
                            aq_interpolation interpolation) {
    uint32_t left = boundary + 1 < window ? boundary + 1 : window;
    uint32_t right = count - 1 - boundary < window ? count - 1 - boundary : window;
    if (group + left < boundary + 1) return 0.0;
    if (group > boundary + right) return 1.0;
    double position = (double)(group + left - boundary);
    return aq_ramp(position / (double)(left + right + 1), interpolation);
}

AQ_SIMD_EXACT ARROWQUANT_API aq_status aq_smooth_boundaries(float *scales, int32_t *zero_points,
                                                            uint32_t count, uint32_t window,
                                                            aq_interpolation interpolation,
                                                            aq_error *err) {
    AQ_SIMD_EXACT_BODY
    double scale[AQ_TIME_GROUPS_MAX], zero[AQ_TIME_GROUPS_MAX];
    if (!scales || !zero_points || count > AQ_TIME_GROUPS_MAX || !window || window > 20 ||
        (unsigned)interpolation > AQ_INTERPOLATION_SIGMOID)
        return aq_fail(err, AQ_ERR_ARGUMENT, "aq_smooth_boundaries: at most %u groups, a window of 1 "
                       "to 20 and one of the interpolations", AQ_TIME_GROUPS_MAX);
    for (uint32_t g = 0; g < count; g++) {
        scale[g] = (double)scales[0];
        zero[g] = (double)zero_points[0];
        for (uint32_t b = 0; b + 1 < count; b++) {
            double share = aq_step_share(g, b, count, window, interpolation);
            scale[g] += share * ((double)scales[b + 1] - (double)scales[b]);
            zero[g] += share * ((double)zero_points[b + 1] - (double)zero_points[b]);
        }
    }
    for (uint32_t g = 0; g < count; g++) {
        scales[g] = (float)scale[g];
        zero_points[g] = (int32_t)rint(zero[g]);
    }
    return AQ_OK;
}
