// From C++: quantizes one matrix, and a model when two paths are given, with RAII around the C API.
// Build and run: c++ -O2 -std=c++11 examples/cpp.cpp -o cpp -lpthread -lm && ./cpp [MODEL OUT]
#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

void check(aq_status status, const aq_error &err) {
    if (status != AQ_OK) throw std::runtime_error(err.message);
}

struct Matrix {
    aq_quant_spec spec;
    aq_quant_layout layout;
    std::vector<unsigned char> codes, params;
};

Matrix quantize(const std::vector<float> &weights, uint64_t rows, uint64_t cols) {
    Matrix out;
    aq_error err;
    out.spec = {AQ_CODE_AFFINE, AQ_PARAM_F16, 4, 64, AQ_FIT_LEAST_SQUARES, 0, 0};
    check(aq_quantized_size(&out.spec, rows, cols, &out.layout, &err), err);
    out.codes.resize(out.layout.code_bytes);
    out.params.resize(out.layout.param_bytes);
    aq_quality quality;
    check(aq_quantize(nullptr, &out.spec, weights.data(), AQ_DTYPE_F32, rows, cols, nullptr,
                      out.codes.data(), out.params.data(), nullptr, &quality, &err),
          err);
    std::printf("%zu floats in %zu bytes, SQNR %.2f dB\n", weights.size(),
                out.codes.size() + out.params.size(), aq_quality_sqnr_db(&quality));
    return out;
}

void quantize_model(const char *model, const char *out) {
    aq_error err;
    aq_plan *raw = nullptr;
    check(aq_plan_create(nullptr, model, nullptr, &raw, &err), err);
    std::unique_ptr<aq_plan, void (*)(aq_plan *)> plan(raw, aq_plan_destroy);
    std::printf("%zu tensors, about %.1f MB afterwards\n", plan->tensor_count,
                static_cast<double>(plan->predicted_output_bytes) / 1e6);
    check(aq_plan_execute(nullptr, plan.get(), out, nullptr, nullptr, &err), err);
    check(aq_plan_commit(nullptr, plan.get(), nullptr, &err), err);
}

} // namespace

int main(int argc, char **argv) {
    try {
        std::vector<float> weights(64 * 256);
        for (size_t i = 0; i < weights.size(); i++)
            weights[i] = std::sin(static_cast<float>(i) * 0.37f);
        quantize(weights, 64, 256);
        if (argc == 3) quantize_model(argv[1], argv[2]);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
