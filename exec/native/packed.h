// Products with bfloat16 weights that were packed once: AMX tiles, or AVX-512 dot products.
//
// Packed, a matrix [outputs, inputs] is a sequence of panels of 32 outputs. A panel holds, for every 32
// inputs, two tiles of 16 outputs; a tile is [16 pairs of inputs][16 outputs][2], 1 KiB. Both sizes are
// padded with zeros. So a product reads its weights once, in the order in which they lie.
//
// Sums are float32. What comes out for a row depends on the row and the weights, and on the way (AMX or
// AVX-512: they add in different orders), but on no other row, the number of rows or the threads.

#pragma once

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define BATCHGEN_PACKED 1
#include <immintrin.h>
#endif
#if defined(BATCHGEN_PACKED) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define BATCHGEN_AMX 1
#endif

#include <algorithm>
#include <atomic>

#include "dots.h"

namespace batchgen {

constexpr int64_t TILE = 16;             // rows of a tile, and outputs of one
constexpr int64_t STEP = 32;             // inputs that a tile holds
constexpr int64_t PANEL = 2 * TILE;      // outputs
constexpr int64_t TILE_SIZE = TILE * STEP; // elements of a tile of weights
constexpr int64_t BLOCK_ROWS = 2 * TILE; // rows of a block of results

inline int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows of so many inputs that stay in the second cache, 1 MiB, while panels pass by. Measured with one
// thread of 2 MiB: 1024 rows of 4096 inputs 940 GFLOP/s in chunks of 128 rows, 700 in chunks of 256.
inline int64_t chunk_rows(int64_t inputs) {
  return std::clamp<int64_t>((1 << 19) / inputs / BLOCK_ROWS * BLOCK_ROWS, BLOCK_ROWS, 512);
}

enum Way { NO_WAY = 0, AVX512 = 1, AMX = 2 };

#ifdef BATCHGEN_PACKED

// Results of a block: [2 tiles of rows][2 tiles of outputs][16 rows][16 outputs].
struct alignas(64) Results {
  float at[2][2][TILE][TILE];
};

// Lines of memory to bring into the second cache, so many with each step.
struct Fetch {
  const char *from;
  int64_t lines;
  void step(int64_t number) const {
    for (int64_t line = 0; line < lines; line++)
      _mm_prefetch(from + (number * lines + line) * 64, _MM_HINT_T1);
  }
  // The same in 16 parts: a core waits for few lines at a time, and for more of them it stands still.
  void pair(int64_t number, int64_t part) const {
    for (int64_t line = part; line < lines; line += TILE)
      _mm_prefetch(from + (number * lines + line) * 64, _MM_HINT_T1);
  }
};

inline __m256i rounded(__m512 x) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); // to nearest, ties to even
}

inline __m512 widened(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

#ifdef BATCHGEN_AMX
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};
#endif

// Weights that will be read soon: so many steps, or none.
struct Panel {
  const Bfloat16 *weights = nullptr;
  int64_t steps = 0;
};

// Pieces [0, count), one at a time and each by one thread; a thread knows which one it will do next. The
// last pieces are not taken in advance (-1), so that no thread is without work while one waits.
template <class Work> void take(std::atomic<int64_t> &next, int64_t count, int threads, Work work) {
  for (int64_t piece = next++; piece < count;) {
    const bool early = piece + threads < count;
    int64_t following = early ? next++ : -1;
    work(piece, following < count ? following : -1);
    piece = early ? following : next++;
  }
}

// What a thread multiplies with. One per thread, and only while it multiplies.
class Multiplier {
public:
  explicit Multiplier(int way) : way_(way) {}
  Multiplier(const Multiplier &) = delete;
  Multiplier &operator=(const Multiplier &) = delete;
  ~Multiplier() {
#ifdef BATCHGEN_AMX
    if (rows_) _tile_release();
#endif
  }

  // Products of `count` rows (1 to 32, `stride` elements apart) with one panel of `steps` steps.
  void block(const Bfloat16 *rows, int64_t stride, int64_t count, const Bfloat16 *panel,
             int64_t steps, Fetch fetch, Results &out) {
#ifdef BATCHGEN_AMX
    if (way_ == AMX) return tiles(rows, stride, count, panel, steps, fetch, out);
#endif
    // Groups of nearly equal size: a small one at the end would wait for its own sums.
    const int64_t groups = (count + MOST_AT_ONCE - 1) / MOST_AT_ONCE;
    for (int64_t group = 0, from = 0; group < groups; group++) {
      const int64_t size = (count - from + groups - group - 1) / (groups - group);
      some_dots<MOST_AT_ONCE>(size, rows, stride, panel, steps, out, from, fetch);
      fetch.lines = 0;
      from += size;
    }
  }

  // Products of rows [begin, end) with panels [first, last) of `weight`; `write(block, row, count,
  // panel)` takes the results, which go to `lines_to` lines at `place(row, panel)` and at the rows
  // behind it, `apart` bytes each. The next panel and these places come into the cache while this panel
  // is multiplied; `after` are the weights behind the last one.
  template <class Place, class Write>
  void panels(const Bfloat16 *rows, int64_t stride, int64_t begin, int64_t end,
              const Bfloat16 *weight, int64_t steps, int64_t first, int64_t last, Panel after,
              Place place, int64_t apart, int64_t lines_to, Write write) {
    const int64_t blocks = (end - begin + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t panel = first; panel < last; panel++) {
      const Bfloat16 *here = weight + panel * steps * 2 * TILE_SIZE;
      const Panel following = panel + 1 < last ? Panel{here + steps * 2 * TILE_SIZE, steps} : after;
      const char *next = reinterpret_cast<const char *>(following.weights);
      int64_t left = following.steps * STEP_LINES;
      const int64_t lines = (left + steps * blocks - 1) / (steps * blocks);
      for (int64_t row = begin; row < end; row += BLOCK_ROWS) {
        const int64_t count = std::min(BLOCK_ROWS, end - row);
        const char *to = reinterpret_cast<const char *>(place(row, panel));
        for (int64_t r = 0; r < count; r++)
          for (int64_t line = 0; line < lines_to; line++)
            __builtin_prefetch(to + r * apart + line * 64, 1);
        const Fetch fetch{next, left > 0 ? lines : 0};
        block(rows + row * stride, stride, count, here, steps, fetch, results_);
        next += steps * lines * 64;
        left -= steps * lines;
        write(results_, row, count, panel);
      }
    }
  }

private:
  static constexpr int64_t STEP_LINES = 2 * TILE_SIZE * 2 / 64; // cache lines of a step of a panel
  const int way_;
  int64_t rows_ = 0; // that the tiles are configured for
  Results results_;

  static constexpr int MOST_AT_ONCE = 12; // rows: two registers each, of 32

  template <int MOST, class... P> void some_dots(int64_t count, P &&...p) {
    if constexpr (MOST == 1) {
      dots<1>(p...);
    } else {
      if (count == MOST) return dots<MOST>(p...);
      some_dots<MOST - 1>(count, p...);
    }
  }

  template <int ROWS>
  [[gnu::noinline]] void dots(const Bfloat16 *rows, int64_t stride, const Bfloat16 *panel, int64_t steps,
            Results &out, int64_t from, Fetch fetch) {
    __m512 sums[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    rows += from * stride;
    for (int64_t step = 0; step < steps; step++) {
      const Bfloat16 *tile = panel + step * 2 * TILE_SIZE;
      for (int64_t pair = 0; pair < TILE; pair++) {
        fetch.pair(step, pair);
        const auto left = reinterpret_cast<__m512bh>(_mm512_loadu_si512(tile + pair * STEP));
        const auto right =
            reinterpret_cast<__m512bh>(_mm512_loadu_si512(tile + TILE_SIZE + pair * STEP));
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
          int32_t bits;
          std::memcpy(&bits, rows + r * stride + step * STEP + pair * 2, sizeof bits);
          const auto input = reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, input);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], right, input);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
      for (int half = 0; half < 2; half++)
        _mm512_store_ps(out.at[(from + r) / TILE][half][(from + r) % TILE], sums[r][half]);
  }

#ifdef BATCHGEN_AMX
  // Tiles 0 to 3 are results, 4 and 5 rows, 6 and 7 weights. Fewer rows cost less time.
  void configure(int64_t count) {
    if (count == rows_) return;
    TileConfig config;
    const int64_t low = count < TILE ? count : TILE, high = count > TILE ? count - TILE : 1;
    for (int tile = 0; tile < 8; tile++) config.colsb[tile] = 64;
    config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(low);
    config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(high);
    config.rows[6] = config.rows[7] = TILE;
    _tile_loadconfig(&config);
    rows_ = count;
  }

  void tiles(const Bfloat16 *rows, int64_t stride, int64_t count, const Bfloat16 *panel,
             int64_t steps, Fetch fetch, Results &out) {
    configure(count);
    const Bfloat16 *lower = rows + TILE * stride;
    const int64_t apart = stride * 2;
    _tile_zero(0);
    _tile_zero(1);
    if (count <= TILE) {
      for (int64_t step = 0; step < steps; step++) {
        fetch.step(step);
        _tile_loadd(4, rows + step * STEP, apart);
        _tile_loadd(6, panel + step * 2 * TILE_SIZE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + (step * 2 + 1) * TILE_SIZE, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
    } else {
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t step = 0; step < steps; step++) {
        fetch.step(step);
        _tile_loadd(4, rows + step * STEP, apart);
        _tile_loadd(6, panel + step * 2 * TILE_SIZE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, lower + step * STEP, apart);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, panel + (step * 2 + 1) * TILE_SIZE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(2, out.at[1][0], 64);
      _tile_stored(3, out.at[1][1], 64);
    }
    _tile_stored(0, out.at[0][0], 64);
    _tile_stored(1, out.at[0][1], 64);
  }
#endif
};

// x / (1 + e^-x) within 1e-6 of it, for what is rounded to bfloat16: a division takes as long as all else.
inline __m512 quick_silu(__m512 x) {
  const __m512 size = _mm512_abs_ps(x);
  const Vec power = exponential(-reinterpret_cast<Vec>(size)); // of what is at most 0
  const __m512 below = reinterpret_cast<__m512>(power + 1.0f);
  __m512 inverse = _mm512_rcp14_ps(below);
  inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(below, inverse, _mm512_set1_ps(2.0f)));
  const __mmask16 negative = _mm512_movepi32_mask(reinterpret_cast<__m512i>(x));
  const __m512 share =
      _mm512_mask_mul_ps(inverse, negative, inverse, reinterpret_cast<__m512>(power));
  return _mm512_mul_ps(x, share);
}

// Writes silu(gate) * up of a block, gate its left and up its right tile; 16 results per row.
inline void write_gated(const Results &block, int64_t count, Bfloat16 *out, int64_t stride) {
  for (int64_t r = 0; r < count; r++) {
    const __m512 gate = quick_silu(_mm512_load_ps(block.at[r / TILE][0][r % TILE]));
    const __m512 up = _mm512_load_ps(block.at[r / TILE][1][r % TILE]);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + r * stride),
                        rounded(_mm512_mul_ps(gate, up)));
  }
}

// Writes the 32 sums of every row of a block.
inline void write_floats(const Results &block, int64_t count, float *out, int64_t stride) {
  for (int64_t r = 0; r < count; r++)
    for (int64_t half = 0; half < 2; half++)
      store(out + r * stride + half * TILE, load(block.at[r / TILE][half][r % TILE]));
}

#endif // BATCHGEN_PACKED

} // namespace batchgen
