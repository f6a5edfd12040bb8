// Sixteen floats at a time in the compiler's own vector types, and the dtypes that they are read from.
//
// Every function is a fixed sequence of operations: what it gives does not depend on its neighbours.

#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace batchgen {

constexpr int LANES = 16;        // of a vector; the compiler splits them where registers are shorter

typedef float Vec __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

// Vectors whose elements begin on a cache line, because a load across two lines costs two, and large
// ones in huge pages where the system gives them.
template <class T> struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t LINE{64};
  LineAllocator() = default;
  template <class U> LineAllocator(const LineAllocator<U> &) {}
  static constexpr std::size_t HUGE_PAGE = 2 << 20, LARGE = 1 << 20;
  static bool is_large(std::size_t count) { return count * sizeof(T) >= LARGE; }
  T *allocate(std::size_t count) {
    if (!is_large(count)) return static_cast<T *>(::operator new(count * sizeof(T), LINE));
    const std::size_t bytes = (count * sizeof(T) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void *at = ::operator new(bytes, std::align_val_t{HUGE_PAGE});
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(at, bytes, MADV_HUGEPAGE); // a wish: refused where the system has none
#endif
    return static_cast<T *>(at);
  }
  void deallocate(T *at, std::size_t count) {
    ::operator delete(at, is_large(count) ? std::align_val_t{HUGE_PAGE} : LINE);
  }
  template <class U> bool operator==(const LineAllocator<U> &) const { return true; }
  template <class U> bool operator!=(const LineAllocator<U> &) const { return false; }
};
template <class T> using Lines = std::vector<T, LineAllocator<T>>;

enum Kind { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

struct Bfloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(_Float16 x) { return static_cast<float>(x); }
inline float widen(Bfloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow(float x, float &out) { out = x; }
inline void narrow(float x, _Float16 &out) { out = static_cast<_Float16>(x); }
inline void narrow(float x, Bfloat16 &out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u); // to nearest, ties to even
  out.bits = nan ? 0x7fc0 : static_cast<uint16_t>(rounded >> 16);
}

inline Vec load(const float *from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(float *to, Vec value) { std::memcpy(to, &value, sizeof value); }
inline Vec all(float x) { return Vec{} + x; }

// e^x for x <= 0, within 2e-7 of it; 0 below -87.
inline Vec exponential(Vec x) {
  const Vec magic = all(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  Ints small = x < all(-87.0f);
  x = small ? all(-87.0f) : x;
  Vec turns = x * 1.44269504f + magic;
  Ints power;
  std::memcpy(&power, &turns, sizeof power);
  turns = turns - magic;
  Vec rest = x - turns * 0.693359375f;
  rest = rest + turns * 2.12194440e-4f;
  // Taylor's series to the seventh power: |rest| <= 0.347.
  Vec sum = all(1.0f / 5040);
  sum = sum * rest + 1.0f / 720;
  sum = sum * rest + 1.0f / 120;
  sum = sum * rest + 1.0f / 24;
  sum = sum * rest + 1.0f / 6;
  sum = sum * rest + 0.5f;
  sum = sum * rest + 1.0f;
  sum = sum * rest + 1.0f;
  Ints scale = (power << 23) + (127 << 23); // the integer sits in the low bits of `turns`
  Vec factor;
  std::memcpy(&factor, &scale, sizeof factor);
  return small ? Vec{} : sum * factor;
}

// Sums of sixteen vectors, one per lane, always added in the same tree.
inline Vec sums(const Vec *v) {
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10,
                                   26, 12, 28, 14, 30) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11,
                                   27, 13, 29, 15, 31);
  for (int i = 0; i < 4; i++)
    b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25,
                                   12, 13, 28, 29) +
           __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                   27, 14, 15, 30, 31);
  for (int i = 0; i < 2; i++)
    c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11,
                                   24, 25, 26, 27) +
           __builtin_shufflevector(b[2 * i], b[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14,
                                   15, 28, 29, 30, 31);
  return __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22,
                                 23) +
         __builtin_shufflevector(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29,
                                 30, 31);
}

// All lanes folded in halves, so that the order is fixed and the adds run side by side.
template <class Fold> inline float folded(Vec v, Fold fold) {
  v = fold(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = fold(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = fold(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = fold(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}
inline float largest(Vec v) {
  return folded(v, [](Vec a, Vec b) { return a > b ? a : b; });
}
inline float total(Vec v) {
  return folded(v, [](Vec a, Vec b) { return a + b; });
}

typedef uint16_t Shorts __attribute__((vector_size(LANES * 2), aligned(2)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4), aligned(4)));
typedef _Float16 Halves __attribute__((vector_size(LANES * 2), aligned(2)));

inline Vec load_wide(const float *from) { return load(from); }
inline Vec load_wide(const Bfloat16 *from) {
  Shorts bits;
  std::memcpy(&bits, from, sizeof bits);
  Words wide = __builtin_convertvector(bits, Words) << 16;
  Vec value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}
inline Vec load_wide(const _Float16 *from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return __builtin_convertvector(halves, Vec);
}
} // namespace batchgen
