// Portable vectors of floats: `vf` holds VL lanes (16 with AVX-512, 8 with AVX2, 4 otherwise, NEON included), written
// with the compiler's vector extension so that one source serves every instruction set. Loads and stores convert from
// and to f32, bf16 and f16. The elementary functions are accurate to about 2 ulp over the whole range.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef MM_ISA
#define MM_ISA base
#endif

namespace mm::cpu::MM_ISA {

#if defined(__AVX512F__)
constexpr int VL = 16;
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

#define MM_INLINE inline __attribute__((always_inline))

MM_INLINE vf splat(float x) { return x - vf{}; }
MM_INLINE vi asInt(vf x) { return (vi)x; }
MM_INLINE vf asFloat(vi x) { return (vf)x; }
MM_INLINE vf toFloat(vi x) { return __builtin_convertvector(x, vf); }
MM_INLINE vi laneIndex() {  // 0, 1, 2, ...
  vi r{};
#pragma GCC unroll 16
  for (int i = 0; i < VL; i++) r[i] = i;
  return r;
}
MM_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
MM_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
MM_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
MM_INLINE vf vabs(vf x) { return asFloat(asInt(x) & 0x7fffffff); }
MM_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }  // contracted to one instruction where the set has it

// ---- scalar conversions
MM_INLINE float toF32(float x) { return x; }
MM_INLINE float toF32(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
MM_INLINE float toF32(f16 h) {
#if defined(__F16C__)
  return _cvtsh_ss(h.bits);
#else
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16, exponent = (h.bits >> 10) & 31, mantissa = h.bits & 1023;
  uint32_t u;
  if (exponent == 31) u = sign | 0x7f800000 | (mantissa << 13);
  else if (exponent) u = sign | ((exponent + 112) << 23) | (mantissa << 13);
  else {
    const float f = float(mantissa) * 0x1p-24f;
    std::memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
#endif
}
template <class T>
T fromF32(float x);
template <>
MM_INLINE float fromF32<float>(float x) { return x; }
template <>
MM_INLINE bf16 fromF32<bf16>(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 64)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <>
MM_INLINE f16 fromF32<f16>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, 0))};
#else
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (u >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  float a;
  std::memcpy(&a, &u, 4);
  if (u < 0x38800000) {  // subnormal: adding 0.5 rounds at 2^-24
    a += 0.5f;
    std::memcpy(&u, &a, 4);
    return {uint16_t(sign | (u - 0x3f000000))};
  }
  return {uint16_t(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13))};
#endif
}

// ---- loads and stores of VL lanes
MM_INLINE vf load(const float* p) { return (vf)*reinterpret_cast<const vf_unaligned*>(p); }
MM_INLINE vf load(const bf16* p) {
#if defined(__AVX512F__)
  return (vf)((vu)_mm512_maskz_cvtepu16_epi32(-1, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) << 16);
#elif defined(__AVX2__)
  return (vf)((vu)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))) << 16);
#else
  const vh h = (vh)*reinterpret_cast<const vh_unaligned*>(p);
  return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
MM_INLINE vf load(const f16* p) {  // the masked forms (all lanes) keep GCC 12 from warning about its own header
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_cvtph_ps(-1, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vf r;
  for (int i = 0; i < VL; i++) r[i] = toF32(p[i]);
  return r;
#endif
}
MM_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = (vf_unaligned)x; }
MM_INLINE void store(bf16* p, vf x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  const vu u = (vu)x;
  const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const vu quiet = (u >> 16) | 64;
  const vu r = (vu)((u & 0x7fffffff) > 0x7f800000 ? (vi)quiet : (vi)rounded);
  *reinterpret_cast<vh_unaligned*>(p) = (vh_unaligned) __builtin_convertvector(r, vh);
#endif
}
MM_INLINE void store(f16* p, vf x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(-1, (__m512)x, 0));
#elif defined(__F16C__) && defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x, 0));
#else
  for (int i = 0; i < VL; i++) p[i] = fromF32<f16>(x[i]);
#endif
}

// The first n lanes, 0 < n <= VL; the others load as zero and are not stored.
template <class T>
MM_INLINE vf loadPartial(const T* p, int n) {
  T lanes[VL] = {};
  for (int i = 0; i < n; i++) lanes[i] = p[i];
  return load(lanes);
}
template <class T>
MM_INLINE void storePartial(T* p, vf x, int n) {
  T lanes[VL];
  store(lanes, x);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
#if defined(__AVX512F__)
template <>
MM_INLINE vf loadPartial<float>(const float* p, int n) { return (vf)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
template <>
MM_INLINE void storePartial<float>(float* p, vf x, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)x); }
#if defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
MM_INLINE vf loadPartial<bf16>(const bf16* p, int n) {
  return (vf)((vu)_mm512_maskz_cvtepu16_epi32(-1, _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p)) << 16);
}
template <>
MM_INLINE vf loadPartial<f16>(const f16* p, int n) {
  return (vf)_mm512_maskz_cvtph_ps(-1, _mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}
template <>
MM_INLINE void storePartial<bf16>(bf16* p, vf x, int n) {
  bf16 lanes[VL];
  store(lanes, x);
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)));
}
template <>
MM_INLINE void storePartial<f16>(f16* p, vf x, int n) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), _mm512_maskz_cvtps_ph(-1, (__m512)x, 0));
}
#endif
#elif defined(__AVX2__)
MM_INLINE __m256i firstLanes(int n) { return (__m256i)((vi){0, 1, 2, 3, 4, 5, 6, 7} < (vi{} + n)); }
template <>
MM_INLINE vf loadPartial<float>(const float* p, int n) { return (vf)_mm256_maskload_ps(p, firstLanes(n)); }
template <>
MM_INLINE void storePartial<float>(float* p, vf x, int n) { _mm256_maskstore_ps(p, firstLanes(n), (__m256)x); }
#endif
template <class T>
MM_INLINE vf loadUpTo(const T* p, int64_t n) { return n >= VL ? load(p) : loadPartial(p, int(n)); }
template <class T>
MM_INLINE void storeUpTo(T* p, vf x, int64_t n) { n >= VL ? store(p, x) : storePartial(p, x, int(n)); }

// ---- horizontal, in a fixed order: neighbours first, as sumLanes() of simd/lanes.h, so both give the same bits
template <int S, int... I>
MM_INLINE vf swapLanes(vf x, std::integer_sequence<int, I...>) { return __builtin_shufflevector(x, x, (I ^ S)...); }
template <int S = 1>
MM_INLINE float sum(vf x) {
  if constexpr (S == VL) return x[0];
  else return sum<2 * S>(x + swapLanes<S>(x, std::make_integer_sequence<int, VL>{}));
}
template <int S = 1>
MM_INLINE float maximum(vf x) {
  if constexpr (S == VL) return x[0];
  else return maximum<2 * S>(vmax(x, swapLanes<S>(x, std::make_integer_sequence<int, VL>{})));
}

// ---- elementary functions
MM_INLINE vf exp(vf x) {
  x = select(x > splat(130.f), splat(130.f), x);  // written so that NaN passes through
  x = select(x < splat(-130.f), splat(-130.f), x);
  const vf magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const vf shifted = x * 1.44269504f + magic;
  const vf n = shifted - magic;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const vi e = asInt(shifted) - asInt(magic);
  const vi half = e >> 1;  // two factors, so that subnormal results and infinity come out right
  return p * asFloat((half + 127) << 23) * asFloat((e - half + 127) << 23);
}
// Natural logarithm; log(0) = -inf, negative -> NaN.
MM_INLINE vf log(vf x) {
  const vi tiny = x < splat(1.17549435e-38f);
  const vf scaled = select(tiny, x * 8388608.f, x);
  const vi bits = asInt(scaled);
  const vi adjusted = bits - 0x3f3504f3;  // mantissa into [sqrt(1/2), sqrt(2))
  const vi e = (adjusted >> 23) + (tiny & -23);
  const vf m = asFloat((adjusted & 0x007fffff) + 0x3f3504f3) - 1.f;
  const vf z = m * m;
  vf p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const vf n = toFloat(e);
  vf y = p * m * z + n * -2.12194440e-4f - z * 0.5f + m + n * 0.693359375f;
  y = select(x == splat(0.f), splat(-__builtin_inff()), y);
  y = select(x == splat(__builtin_inff()), x, y);
  return select((x < splat(0.f)) | (x != x), splat(__builtin_nanf("")), y);
}
MM_INLINE vf sigmoid(vf x) {
  const vf e = exp(-vabs(x));
  const vf s = 1.f / (1.f + e);
  return select(x >= splat(0.f), s, e * s);
}
MM_INLINE vf silu(vf x) { return x * sigmoid(x); }
// d silu(x) / dx
MM_INLINE vf siluGrad(vf x) {
  const vf s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}
MM_INLINE vf softplus(vf x) {
  const vf e = exp(-vabs(x));
  const vf u = 1.f + e;
  const vf d = u - 1.f;
  const vf l = select(d == splat(0.f), e, log(u) * e / select(d == splat(0.f), splat(1.f), d));  // Kahan's log1p
  return vmax(x, splat(0.f)) + l;
}
// Error function, rational in x^2 on [-4, 4].
MM_INLINE vf erf(vf x) {
  x = vmax(vmin(x, splat(4.f)), splat(-4.f));
  const vf z = x * x;
  vf p = splat(-2.72614225801306e-10f);
  p = p * z + 2.77068142495902e-08f;
  p = p * z - 2.10102402082508e-06f;
  p = p * z - 5.69250639462346e-05f;
  p = p * z - 7.34990630326855e-04f;
  p = p * z - 2.95459980854025e-03f;
  p = p * z - 1.60960333262415e-02f;
  vf q = splat(-1.45660718464996e-05f);
  q = q * z - 2.13374055278905e-04f;
  q = q * z - 1.68282697438203e-03f;
  q = q * z - 7.37332916720468e-03f;
  q = q * z - 1.42647390514189e-02f;
  return x * p / q;
}

// Scalars through the same polynomials, so that tails and bodies of a row agree to the bit.
MM_INLINE float exp(float x) { return exp(splat(x))[0]; }
MM_INLINE float log(float x) { return log(splat(x))[0]; }
MM_INLINE float softplus(float x) { return softplus(splat(x))[0]; }
MM_INLINE float sigmoid(float x) { return sigmoid(splat(x))[0]; }
MM_INLINE float silu(float x) { return silu(splat(x))[0]; }

}  // namespace mm::cpu::MM_ISA
