// The operations of a layer as they are exported, for those who call several of them.

#pragma once

#include <cstdint>

#include "failures.h"

extern "C" {
int batchgen_rms_norm(int kind, int threads, const void *x, const void *added, const void *weight,
                      void *sum, void *out, const int64_t *sizes, float eps);
int batchgen_place_qkv(int kind, int threads, const void *qkv, const void *q_norm,
                       const void *k_norm, const float *cosines, const float *sines,
                       const int64_t *pages, const int64_t *offsets, void *storage, void *q,
                       const int64_t *sizes, float eps);
int batchgen_add(int kind, int threads, const void *x, const void *added, void *out, int64_t count);
int batchgen_paged_attention(int kind, int threads, const void *queries, const void *storage,
                             void *out, const int64_t *tables, const int64_t *firsts,
                             const int64_t *starts, const int64_t *lengths, const float *sinks,
                             const int64_t *sizes, float scale);
int batchgen_packed_way();
int batchgen_linear(int way, int threads, const void *x, const void *weight, const void *bias,
                    void *out, int64_t rows, int64_t inputs, int64_t outputs, int64_t stride,
                    int gated);
int batchgen_linear_floats(int way, int threads, const void *x, const void *weight, float *out,
                           int64_t rows, int64_t inputs, int64_t outputs);
int batchgen_packed_experts(int way, int threads, const void *x, const void *router,
                            const int32_t *given_experts, const float *given_weights,
                            const void *gate_up, const void *down, void *out, const int64_t *sizes);
}
