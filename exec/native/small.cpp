// The small operations between the products of a layer, in bfloat16, each in one pass over memory.
//
// Do what rms_norm, apply_rope and KvArena.write do in torch, and round where they round; called by
// exec/fused.py. A token's result does not depend on the other tokens or the threads.

#include <cmath>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>

#include "layers.h"
#include "vectors.h"

namespace {

using namespace batchgen;

constexpr int64_t WORTH_THREADS = 1 << 14; // elements below which other threads stay asleep
constexpr int64_t MOST_DIM = 4096;         // elements of a head

// Sixteen elements of bfloat16: from floats, to floats, and in memory.
#ifdef __AVX512BF16__
typedef __m256i Narrow;
inline Narrow narrowed(Vec value) {
  return reinterpret_cast<Narrow>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(value)));
}
inline Vec widened(Narrow bits) {
  return reinterpret_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#else
typedef Shorts Narrow;
inline Narrow narrowed(Vec value) {
  Words bits;
  std::memcpy(&bits, &value, sizeof bits);
  const Words to_nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; // ties to even
  const Words one = (bits & 0x7fffffffu) > 0x7f800000u ? Words{} + 0x7fc0u : to_nearest;
  return __builtin_convertvector(one, Shorts);
}
inline Vec widened(Narrow bits) {
  const Words wide = __builtin_convertvector(bits, Words) << 16;
  Vec value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
#endif

inline Vec rounded(Vec value) { return widened(narrowed(value)); }

// The first `count` elements at most, zeros behind them.
inline Vec load_some(const float *from, int64_t count) {
  if (count >= LANES) return load(from);
  Vec value{};
  std::memcpy(&value, from, count * sizeof *from);
  return value;
}
inline Vec load_some(const Bfloat16 *from, int64_t count) {
  Narrow bits{};
  if (count >= LANES)
    std::memcpy(&bits, from, sizeof bits); // of a known size: no call
  else
    std::memcpy(&bits, from, count * sizeof *from);
  return widened(bits);
}
inline void store_some(Bfloat16 *to, Vec value, int64_t count) {
  const Narrow bits = narrowed(value);
  if (count >= LANES)
    std::memcpy(to, &bits, sizeof bits);
  else
    std::memcpy(to, &bits, count * sizeof *to);
}

struct NormJob {
  const Bfloat16 *x, *added; // [rows, width], rows of x `stride` apart; added may be null
  const Bfloat16 *weight;    // [width]
  Bfloat16 *sum, *out;       // [rows, width]; sum only with added
  float eps;
  int64_t rows, width, stride;
};

void norm_row(const NormJob &job, int64_t row) {
  const Bfloat16 *x = job.x + row * job.stride;
  Vec squares{};
  if (job.added) {
    const Bfloat16 *added = job.added + row * job.width;
    Bfloat16 *sum = job.sum + row * job.width;
    for (int64_t i = 0; i < job.width; i += LANES) {
      const int64_t left = job.width - i;
      const Vec both = rounded(load_some(x + i, left) + load_some(added + i, left));
      store_some(sum + i, both, left);
      squares += both * both;
    }
    x = sum;
  } else {
    for (int64_t i = 0; i < job.width; i += LANES) {
      const Vec one = load_some(x + i, job.width - i);
      squares += one * one;
    }
  }
  const float factor = 1 / std::sqrt(total(squares) / static_cast<float>(job.width) + job.eps);
  Bfloat16 *out = job.out + row * job.width;
  for (int64_t i = 0; i < job.width; i += LANES) {
    const int64_t left = job.width - i;
    const Vec normed = rounded(load_some(x + i, left) * factor);
    store_some(out + i, normed * load_some(job.weight + i, left), left);
  }
}

struct PlaceJob {
  const Bfloat16 *qkv;             // [tokens, heads + 2 kv_heads, head_dim], tokens `stride` apart
  const Bfloat16 *q_norm, *k_norm; // [head_dim] each, or both null
  const float *cosines, *sines;    // [tokens, head_dim / 2]
  const int64_t *pages, *offsets;  // [tokens]: where the KV goes
  Bfloat16 *storage;               // [pages, layers, 2, kv_heads, page_tokens, head_dim]
  Bfloat16 *q;                     // [tokens, heads, head_dim]
  float eps;
  int64_t tokens, stride, heads, kv_heads, head_dim, layer, layers, page_tokens;
};

// One head, normed (unless `weight` is null) and turned.
void turn_head(const PlaceJob &job, const Bfloat16 *x, const Bfloat16 *weight, const float *cosines,
               const float *sines, Bfloat16 *out) {
  const int64_t dim = job.head_dim, half = dim / 2;
  float values[MOST_DIM + LANES];
  Vec squares{};
  for (int64_t i = 0; i < dim; i += LANES) {
    const Vec one = load_some(x + i, dim - i);
    squares += one * one;
    store(values + i, one);
  }
  if (weight) {
    const float factor = 1 / std::sqrt(total(squares) / static_cast<float>(dim) + job.eps);
    for (int64_t i = 0; i < dim; i += LANES) {
      const Vec normed = rounded(load(values + i) * factor);
      store(values + i, rounded(normed * load_some(weight + i, dim - i)));
    }
  }
  for (int64_t i = 0; i < half; i += LANES) {
    const int64_t left = half - i;
    const Vec first = load(values + i), second = load(values + half + i);
    const Vec cosine = load_some(cosines + i, left), sine = load_some(sines + i, left);
    store_some(out + i, first * cosine - second * sine, left);
    store_some(out + half + i, second * cosine + first * sine, left);
  }
}

void place_token(const PlaceJob &job, int64_t token) {
  const int64_t dim = job.head_dim, half = dim / 2;
  const Bfloat16 *head = job.qkv + token * job.stride;
  const float *cosines = job.cosines + token * half, *sines = job.sines + token * half;
  for (int64_t n = 0; n < job.heads; n++, head += dim)
    turn_head(job, head, job.q_norm, cosines, sines, job.q + (token * job.heads + n) * dim);
  const int64_t plane = (job.pages[token] * job.layers + job.layer) * 2 * job.kv_heads;
  const int64_t apart = job.page_tokens * dim;
  Bfloat16 *to = job.storage + plane * apart + job.offsets[token] * dim;
  for (int64_t n = 0; n < job.kv_heads; n++, head += dim, to += apart)
    turn_head(job, head, job.k_norm, cosines, sines, to);
  for (int64_t n = 0; n < job.kv_heads; n++, head += dim, to += apart)
    std::memcpy(to, head, dim * sizeof *to);
}

template <class Work> void for_all(int64_t count, int64_t elements, int threads, Work work) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)                                 \
    if (threads > 1 && count * elements >= WORTH_THREADS)
  for (int64_t i = 0; i < count; i++) work(i);
}

} // namespace

// RMS norm of `x`, or of `x` plus `added`, which goes to `sum`. Returns 0, or 1 for a kind that it does
// not know.
extern "C" int batchgen_rms_norm(int kind, int threads, const void *x, const void *added,
                                 const void *weight, void *sum, void *out, const int64_t *sizes,
                                 float eps) {
  if (kind != BFLOAT16) return 1;
  const NormJob job{static_cast<const Bfloat16 *>(x),
                    static_cast<const Bfloat16 *>(added),
                    static_cast<const Bfloat16 *>(weight),
                    static_cast<Bfloat16 *>(sum),
                    static_cast<Bfloat16 *>(out),
                    eps,
                    sizes[0],
                    sizes[1],
                    sizes[2]};
  for_all(job.rows, job.width, threads, [&](int64_t row) { norm_row(job, row); });
  return 0;
}

// Sums of `count` elements, which may take the place of `x`. Returns as above.
extern "C" int batchgen_add(int kind, int threads, const void *x, const void *added, void *out,
                            int64_t count) {
  if (kind != BFLOAT16) return 1;
  constexpr int64_t PIECE = 512;
  const auto *one = static_cast<const Bfloat16 *>(x), *other = static_cast<const Bfloat16 *>(added);
  auto *to = static_cast<Bfloat16 *>(out);
  for_all((count + PIECE - 1) / PIECE, PIECE, threads, [&](int64_t piece) {
    for (int64_t i = piece * PIECE; i < std::min(count, piece * PIECE + PIECE); i += LANES)
      store_some(to + i, load_some(one + i, count - i) + load_some(other + i, count - i), count - i);
  });
  return 0;
}

// Norms and turns the queries and keys of `qkv`, and writes keys and values into their pages. Returns 0,
// or 1 for a kind or a shape that it does not know.
extern "C" int batchgen_place_qkv(int kind, int threads, const void *qkv, const void *q_norm,
                                  const void *k_norm, const float *cosines, const float *sines,
                                  const int64_t *pages, const int64_t *offsets, void *storage,
                                  void *q, const int64_t *sizes, float eps) {
  const PlaceJob job{static_cast<const Bfloat16 *>(qkv),
                     static_cast<const Bfloat16 *>(q_norm),
                     static_cast<const Bfloat16 *>(k_norm),
                     cosines,
                     sines,
                     pages,
                     offsets,
                     static_cast<Bfloat16 *>(storage),
                     static_cast<Bfloat16 *>(q),
                     eps,
                     sizes[0],
                     sizes[1],
                     sizes[2],
                     sizes[3],
                     sizes[4],
                     sizes[5],
                     sizes[6],
                     sizes[7]};
  if (kind != BFLOAT16 || job.head_dim % 2 || job.head_dim > MOST_DIM) return 1;
  const int64_t elements = (job.heads + 2 * job.kv_heads) * job.head_dim;
  for_all(job.tokens, elements, threads, [&](int64_t token) { place_token(job, token); });
  return 0;
}
