// Exchanges between the lanes of several vectors, written with constant shuffles so that every instruction set gets
// its own: a square of M x M elements is transposed in log2(M) stages of M shuffles, and M vectors are summed into one
// (lane i = sum of the lanes of vector i) in 3 (M - 1) instructions.
#pragma once
#include <utility>

#include "cpu/simd/vec.h"

namespace mm::cpu::MM_ISA {

template <int S, int M, class V, int... I>
MM_INLINE V evenLanes(V a, V b, std::integer_sequence<int, I...>) { return __builtin_shufflevector(a, b,
    ((I & S) ? M + I - S : I)...); }
template <int S, int M, class V, int... I>
MM_INLINE V oddLanes(V a, V b, std::integer_sequence<int, I...>) { return __builtin_shufflevector(a, b,
    ((I & S) ? M + I : I + S)...); }

template <int S, int M, class V>
MM_INLINE void transposeStages(V* r) {
  constexpr std::make_integer_sequence<int, M> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
    if (!(i & S)) {
      const V a = r[i], b = r[i + S];
      r[i] = evenLanes<S, M>(a, b, lanes);
      r[i + S] = oddLanes<S, M>(a, b, lanes);
    }
  if constexpr (2 * S < M) transposeStages<2 * S, M>(r);
}
// r[i][j] becomes r[j][i]; r holds M vectors of M lanes
template <int M, class V>
MM_INLINE void transposeLanes(V* r) { transposeStages<1, M>(r); }

template <int S>
MM_INLINE void sumStages(vf* r) {
  constexpr std::make_integer_sequence<int, VL> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < VL; i += 2 * S) r[i] = evenLanes<S, VL>(r[i], r[i + S], lanes) + oddLanes<S, VL>(r[i], r[i + S], lanes);
  if constexpr (2 * S < VL) sumStages<2 * S>(r);
}
// Lane i of the result = sum over the lanes of r[i], for VL vectors; r is overwritten.
MM_INLINE vf sumLanes(vf* r) {
  sumStages<1>(r);
  return r[0];
}

}  // namespace mm::cpu::MM_ISA
