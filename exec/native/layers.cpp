// Layers of grouped-query attention and a packed MLP, one after another in one call: what exec/layers.py
// does operation by operation, in the same order, without a turn of the interpreter in between.
//
// Everything is bfloat16, and every product packed. Called by exec/layer_stack.py.

#include "layers.h"
#include "vectors.h"

using namespace batchgen;

// The two structs are those of exec/layer_stack.py, field by field.
extern "C" struct BatchgenLayer {
  const void *norm, *qkv, *qkv_bias, *q_norm, *k_norm, *out, *out_bias;
  const float *sinks;
  const void *feed_norm, *router, *gate_up, *down, *down_bias; // no router: a dense MLP
  int64_t window, width, experts, top_k, renormalise;
  float scale;
};

extern "C" struct BatchgenPass {
  void *x; // [tokens, hidden]: read, and written over
  const float *cosines, *sines;
  const int64_t *pages, *offsets; // [tokens]: where the KV goes
  void *storage;
  const int64_t *tables, *firsts, *starts, *lengths; // of the segments, see attention.h
  int64_t tokens, hidden, heads, kv_heads, head_dim, page_tokens, layers, segments, table_width;
  int64_t instructions, way, threads;
  float eps;
};

namespace {

// What lies between the operations of a pass, kept between calls.
struct Between {
  Lines<Bfloat16> normed, qkv, queries, attended, inner, added;
};

int attend(const BatchgenLayer &layer, const BatchgenPass &pass, int64_t number, Between &between) {
  const int threads = static_cast<int>(pass.threads), way = static_cast<int>(pass.way);
  const int64_t q_width = pass.heads * pass.head_dim;
  const int64_t qkv_width = q_width + 2 * pass.kv_heads * pass.head_dim;
  between.qkv.resize(pass.tokens * qkv_width);
  between.queries.resize(pass.tokens * q_width);
  between.attended.resize(pass.tokens * q_width);
  if (const int failed =
          batchgen_linear(way, threads, between.normed.data(), layer.qkv, layer.qkv_bias,
                          between.qkv.data(), pass.tokens, pass.hidden, qkv_width, pass.hidden, 0))
    return failed;
  const int64_t placing[] = {pass.tokens,   qkv_width, pass.heads,  pass.kv_heads,
                             pass.head_dim, number,    pass.layers, pass.page_tokens};
  if (const int failed =
          batchgen_place_qkv(BFLOAT16, threads, between.qkv.data(), layer.q_norm, layer.k_norm,
                             pass.cosines, pass.sines, pass.pages, pass.offsets, pass.storage,
                             between.queries.data(), placing, pass.eps))
    return failed;
  const int64_t attending[] = {pass.segments, pass.table_width, number,           pass.layers,
                               2,             pass.heads,       pass.kv_heads,    pass.page_tokens,
                               pass.head_dim, pass.head_dim,    layer.window,     pass.instructions};
  if (const int failed = batchgen_paged_attention(
          BFLOAT16, threads, between.queries.data(), pass.storage, between.attended.data(),
          pass.tables, pass.firsts, pass.starts, pass.lengths, layer.sinks, attending, layer.scale))
    return failed;
  return batchgen_linear(way, threads, between.attended.data(), layer.out, layer.out_bias,
                         between.added.data(), pass.tokens, q_width, pass.hidden, q_width, 0);
}

int feed(const BatchgenLayer &layer, const BatchgenPass &pass, Between &between) {
  const int threads = static_cast<int>(pass.threads), way = static_cast<int>(pass.way);
  if (layer.router) {
    const int64_t sizes[] = {pass.tokens,   pass.hidden, layer.width,
                             layer.experts, layer.top_k, layer.renormalise};
    return batchgen_packed_experts(way, threads, between.normed.data(), layer.router, nullptr,
                                   nullptr, layer.gate_up, layer.down, between.added.data(), sizes);
  }
  between.inner.resize(pass.tokens * layer.width);
  if (const int failed =
          batchgen_linear(way, threads, between.normed.data(), layer.gate_up, nullptr,
                          between.inner.data(), pass.tokens, pass.hidden, layer.width, pass.hidden, 1))
    return failed;
  return batchgen_linear(way, threads, between.inner.data(), layer.down, layer.down_bias,
                         between.added.data(), pass.tokens, layer.width, pass.hidden, layer.width,
                         0);
}

int run(const BatchgenLayer *layers, int64_t count, const BatchgenPass &pass) {
  static thread_local Between between; // fresh memory of this size would cost page faults each time
  between.normed.resize(pass.tokens * pass.hidden);
  between.added.resize(pass.tokens * pass.hidden);
  const int threads = static_cast<int>(pass.threads);
  const int64_t sizes[] = {pass.tokens, pass.hidden, pass.hidden};
  const auto norm = [&](const void *weight, bool is_first) {
    return batchgen_rms_norm(BFLOAT16, threads, pass.x, is_first ? nullptr : between.added.data(),
                             weight, pass.x, between.normed.data(), sizes, pass.eps);
  };
  for (int64_t number = 0; number < count; number++) {
    const BatchgenLayer &layer = layers[number];
    int failed = norm(layer.norm, number == 0);
    if (!failed) failed = attend(layer, pass, number, between);
    if (!failed) failed = norm(layer.feed_norm, false);
    if (!failed) failed = feed(layer, pass, between);
    if (failed) return failed;
  }
  if (!count) return 0;
  return batchgen_add(BFLOAT16, threads, pass.x, between.added.data(), pass.x,
                      pass.tokens * pass.hidden);
}

} // namespace

// Layers [0, count). Returns 0, or a failure.
extern "C" int batchgen_layers(const BatchgenLayer *layers, int64_t count,
                               const BatchgenPass *pass) {
  return guarded([&] { return run(layers, count, *pass); });
}

// Logits [rows, outputs] of hidden states [rows, hidden]: the last norm and the head. Returns as above.
extern "C" int batchgen_logits(int way, int threads, const void *x, const void *norm,
                               const void *head, float *logits, int64_t rows, int64_t hidden,
                               int64_t outputs, float eps) {
  return guarded([&]() -> int {
    static thread_local Lines<Bfloat16> normed;
    normed.resize(rows * hidden);
    const int64_t sizes[] = {rows, hidden, hidden};
    if (const int failed = batchgen_rms_norm(BFLOAT16, threads, x, nullptr, norm, nullptr,
                                             normed.data(), sizes, eps))
      return failed;
    return batchgen_linear_floats(way, threads, normed.data(), head, logits, rows, hidden, outputs);
  });
}
