// Packing of bfloat16 matrices and dense products with them: y = x W^T + b, or silu(gate) * up.
//
// Does what torch's linear does, with weights packed when the model was loaded (see packed.h). Built
// and called by exec/compiled.py; knows no torch.

#include <algorithm>

#include "layers.h"
#include "packed.h"

#ifdef BATCHGEN_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace batchgen;

constexpr int64_t WORTH_THREADS = 1 << 18; // multiplications below which other threads stay asleep

#ifdef BATCHGEN_PACKED

struct Job {
  const Bfloat16 *x;    // [rows, inputs], `stride` elements apart
  const Bfloat16 *weight;
  const Bfloat16 *bias; // [outputs] or null; never of a gated product
  Bfloat16 *out;        // [rows, outputs], or null
  float *floats;        // the same, rounded to bfloat16 all the same; never of a gated product
  int64_t rows, inputs, outputs, stride;
  bool gated;           // a panel holds 16 gates and their 16 ups, and gives 16 outputs
};

void write_plain(const Results &block, const Job &job, int64_t row, int64_t count, int64_t begin) {
  const int64_t real = std::min(job.outputs - begin, PANEL);
  const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << real) - 1);
  __m512 left = _mm512_setzero_ps(), right = left;
  if (job.bias) {
    float bias[PANEL] = {};
    for (int64_t n = 0; n < real; n++) bias[n] = widen(job.bias[begin + n]);
    left = _mm512_loadu_ps(bias), right = _mm512_loadu_ps(bias + TILE);
  }
  for (int64_t r = 0; r < count; r++) { // a row's 32 results are a cache line: written at once
    const __m512 low = _mm512_load_ps(block.at[r / TILE][0][r % TILE]) + left;
    const __m512 high = _mm512_load_ps(block.at[r / TILE][1][r % TILE]) + right;
    if (job.floats) {
      float *to = job.floats + (row + r) * job.outputs + begin;
      _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), widened(rounded(low)));
      _mm512_mask_storeu_ps(to + TILE, static_cast<__mmask16>(mask >> TILE), widened(rounded(high)));
      continue;
    }
    _mm512_mask_storeu_epi16(job.out + (row + r) * job.outputs + begin, mask,
                             reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
}

void write_gates(const Results &block, const Job &job, int64_t row, int64_t count, int64_t begin) {
  const int64_t real = std::min(job.outputs - begin, TILE);
  if (real == TILE)
    return write_gated(block, count, job.out + row * job.outputs + begin, job.outputs);
  Bfloat16 whole_rows[BLOCK_ROWS * TILE];
  write_gated(block, count, whole_rows, TILE);
  for (int64_t r = 0; r < count; r++)
    std::copy_n(whole_rows + r * TILE, real, job.out + (row + r) * job.outputs + begin);
}

void multiply(Job job, int threads, int way) {
  static thread_local Lines<Bfloat16> padded;
  const int64_t wide = whole(job.inputs, STEP), steps = wide / STEP;
  if (wide != job.inputs) { // tiles are loaded whole
    padded.assign(job.rows * wide, Bfloat16{0});
    for (int64_t r = 0; r < job.rows; r++)
      std::copy_n(job.x + r * job.stride, job.inputs, padded.data() + r * wide);
    job.x = padded.data();
    job.stride = wide;
  }
  const int64_t per_panel = job.gated ? TILE : PANEL;
  const int64_t panels = (job.outputs + per_panel - 1) / per_panel;
  // Pieces: enough of them that a thread which is disturbed holds up no other for long.
  const int64_t group = std::clamp<int64_t>(panels / (threads * 6), 1, 8);
  const int64_t groups = (panels + group - 1) / group;
  const int64_t chunk = chunk_rows(wide), chunks = (job.rows + chunk - 1) / chunk;
  const bool many = job.rows * panels * PANEL * wide > WORTH_THREADS;
  const auto first_of = [&](int64_t piece) { return piece % groups * group; };
  char *const out = job.floats ? reinterpret_cast<char *>(job.floats)
                               : reinterpret_cast<char *>(job.out);
  const int64_t size = job.floats ? 4 : 2;
  const auto place = [&](int64_t row, int64_t panel) {
    return out + (row * job.outputs + panel * per_panel) * size;
  };
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads) if (threads > 1 && many)
  {
    Multiplier multiplier(way);
    take(next, groups * chunks, threads, [&](int64_t piece, int64_t following) {
      const int64_t begin = piece / groups * chunk, first = first_of(piece);
      const Panel after = following < 0
                              ? Panel{}
                              : Panel{job.weight + first_of(following) * steps * 2 * TILE_SIZE, steps};
      multiplier.panels(job.x, job.stride, begin, std::min(begin + chunk, job.rows), job.weight,
                        steps, first, std::min(first + group, panels), after,
                        place, job.outputs * size, job.floats ? 2 : 1,
                        [&](const Results &block, int64_t row, int64_t count, int64_t panel) {
                          if (job.gated)
                            write_gates(block, job, row, count, panel * TILE);
                          else
                            write_plain(block, job, row, count, panel * PANEL);
                        });
    });
  }
}

#endif // BATCHGEN_PACKED

} // namespace

// The best way that this processor and this process have: 2 AMX, 1 AVX-512, 0 none.
extern "C" int batchgen_packed_way() {
#ifdef BATCHGEN_AMX
  // The kernel gives tile registers only to a process that asks (ARCH_REQ_XCOMP_PERM, XTILEDATA).
  static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  if (allowed) return AMX;
#endif
#ifdef BATCHGEN_PACKED
  return AVX512;
#else
  return NO_WAY;
#endif
}

// Packs [outputs, inputs] into `out`. `gated`: the first half of the outputs are gates, the other their
// ups, and a panel takes 16 of each; halves are padded alike.
extern "C" void batchgen_pack(int threads, const void *weight, void *out, int64_t outputs,
                              int64_t inputs, int gated) {
  const auto *from = static_cast<const Bfloat16 *>(weight);
  auto *to = static_cast<Bfloat16 *>(out);
  const int64_t steps = whole(inputs, STEP) / STEP, half = outputs / 2;
  const int64_t panels = gated ? whole(half, PANEL) / TILE : whole(outputs, PANEL) / PANEL;
#pragma omp parallel for num_threads(threads) if (threads > 1 && outputs * inputs > WORTH_THREADS)
  for (int64_t panel = 0; panel < panels; panel++)
    for (int64_t part = 0; part < steps * 2; part++) {
      const int64_t input = part / 2 * STEP, half_of_panel = part % 2;
      Bfloat16 *tile = to + (panel * steps * 2 + part) * TILE_SIZE;
      std::fill_n(tile, TILE_SIZE, Bfloat16{0});
      for (int64_t n = 0; n < TILE; n++) {
        const int64_t neuron = panel * TILE + n;
        const int64_t row = gated ? half_of_panel * half + neuron
                                  : panel * PANEL + half_of_panel * TILE + n;
        if (gated ? neuron >= half : row >= outputs) break;
        const Bfloat16 *source = from + row * inputs + input;
        const int64_t count = std::min(STEP, inputs - input);
        for (int64_t i = 0; i + 1 < count; i += 2) // in pairs
          std::memcpy(tile + i * TILE + n * 2, source + i, 2 * sizeof *source);
        if (count % 2) tile[(count - 1) * TILE + n * 2] = source[count - 1];
      }
    }
}

// Products as float32, with the values that they have in bfloat16. Returns 0, or a failure.
extern "C" int batchgen_linear_floats(int way, int threads, const void *x, const void *weight,
                                      float *out, int64_t rows, int64_t inputs, int64_t outputs) {
#ifdef BATCHGEN_PACKED
  if (way < AVX512 || way > batchgen_packed_way()) return UNKNOWN;
  const Job job{static_cast<const Bfloat16 *>(x), static_cast<const Bfloat16 *>(weight), nullptr,
                nullptr, out, rows, inputs, outputs, inputs, false};
  return guarded([&] { return multiply(job, threads, way), 0; });
#else
  return UNKNOWN;
#endif
}

// Returns 0, or a failure. `stride`: elements between rows of x.
extern "C" int batchgen_linear(int way, int threads, const void *x, const void *weight,
                               const void *bias, void *out, int64_t rows, int64_t inputs,
                               int64_t outputs, int64_t stride, int gated) {
#ifdef BATCHGEN_PACKED
  if (way < AVX512 || way > batchgen_packed_way()) return UNKNOWN;
  const Job job{static_cast<const Bfloat16 *>(x), static_cast<const Bfloat16 *>(weight),
                static_cast<const Bfloat16 *>(bias), static_cast<Bfloat16 *>(out), nullptr, rows,
                inputs, outputs, stride, gated != 0};
  return guarded([&] { return multiply(job, threads, way), 0; });
#else
  return UNKNOWN;
#endif
}
