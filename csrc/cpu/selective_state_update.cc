// selectiveStateUpdate: state = exp(d A) state + d x B, out = (<C, state> + D x) silu(z), in place; one pass over the state,
// which is all the traffic. Vectors run over N; VL rows (channels p) share B and C and are summed across lanes at once,
// so that step, skip and gate are vectors over p. Mamba-1 is the case of one head. A small state runs on one thread:
// waking others costs more than a few hundred KiB.
#include "ops/selective_state_update.h"

#include "cpu/kernel.h"
#include "cpu/simd/lanes.h"

namespace mm::cpu::MM_ISA {
namespace {

// VL elements of a (..., P) parameter or operand of any float dtype; a tied one is the same for all of p.
MM_INLINE vf vectorAt(const MMTensorView& v, int64_t offset, bool tied, int64_t left) {
  return dispatchFloat(v.dtype, [&](auto t) {
    const auto* p = data<decltype(t)>(v) + offset;
    return tied ? splat(toF32(*p)) : loadUpTo(p, left);
  });
}

// R rows of the state at once. decay: of the row when tied, else from A; returns the lanes' partial <C, state> per row.
template <class T, class P, bool TIED, int R>
MM_INLINE void updateRows(float* state, int64_t stride, const T* b, const T* c, const P* a, int64_t n, const float* step,
    const float* input, float decay,
                          vf* sums) {
  vf acc[R] = {};
  for (int64_t j = 0; j < n; j += VL) {
    const vf vb = loadUpTo(b + j, n - j), vc = loadUpTo(c + j, n - j);
#pragma GCC unroll 4
    for (int i = 0; i < R; i++) {
      float* s = state + i * stride + j;
      const vf d = TIED ? splat(decay) : exp(loadUpTo(a + i * n + j, n - j) * step[i]);
      const vf next = fma(d, loadUpTo(s, n - j), vb * input[i]);
      storeUpTo(s, next, n - j);
      acc[i] = fma(vc, next, acc[i]);
    }
  }
  for (int i = 0; i < R; i++) sums[i] = acc[i];
}

template <class T, class P, bool TIED>
void update(const MMCall* call) {
  using namespace ops::selective_state_update;
  const auto &state = in(call, STATE), &x = in(call, X), &dt = in(call, DT), &vb = in(call, B), &vc = in(call, C),
      &y = out(call, OUT);
  const bool perHead = state.ndim == 4, softly = attrs<Attrs>(call).dtSoftplus;
  const int64_t heads = perHead ? state.shape[1] : 1, rows = perHead ? state.shape[2] : state.shape[1], n = lastDim(state);
  const int64_t groups = perHead ? vb.shape[1] : 1, blocks = (rows + VL - 1) / VL, rowStride = state.stride[state.ndim - 2];
  const bool tiedD = has(call, D) && perHead && in(call, D).ndim == 1;
  const auto headStride = [&](const MMTensorView& v) { return perHead ? v.stride[1] : 0; };
  parallelFor(state.shape[0] * heads * blocks, 1 + 65536 / (VL * n + 1), [&](int64_t first, int64_t last, int) {
    for (int64_t item = first; item < last; item++) {
      const int64_t batch = item / (heads * blocks), h = item / blocks % heads, p = item % blocks * VL,
          group = h / (heads / groups);
      const int64_t left = rows - p, count = left < VL ? left : VL;
      const vf vx = loadUpTo(data<T>(x) + batch * x.stride[0] + h * headStride(x) + p, left);
      vf step = vectorAt(dt, batch * dt.stride[0] + h * headStride(dt) + (TIED ? 0 : p), TIED, left);
      if (has(call, DT_BIAS)) step += vectorAt(in(call, DT_BIAS), TIED ? h : h * rows + p, TIED, left);
      if (softly) step = softplus(step);
      float steps[VL], inputs[VL];
      store(steps, step);
      store(inputs, step * vx);
      const P* a = data<P>(in(call, A)) + (TIED ? h : (h * rows + p) * n);
      const float decay = TIED ? exp(steps[0] * toF32(*a)) : 0.f;
      float* s = data<float>(state) + batch * state.stride[0] + h * headStride(state) + p * rowStride;
      const T *b = data<T>(vb) + batch * vb.stride[0] + group * headStride(vb),
          *c = data<T>(vc) + batch * vc.stride[0] + group * headStride(vc);
      vf sums[VL] = {};
      int64_t i = 0;
      for (; i + 4 <= count; i += 4)
        updateRows<T, P, TIED, 4>(s + i * rowStride, rowStride, b, c, TIED ? a : a + i * n, n, steps + i, inputs + i, decay,
            sums + i);
      for (; i < count; i++) updateRows<T, P, TIED, 1>(s + i * rowStride, rowStride, b, c, TIED ? a : a + i * n, n, steps + i,
          inputs + i, decay, sums + i);
      vf result = sumLanes(sums);
      if (has(call, D)) result = fma(vectorAt(in(call, D), tiedD ? h : h * rows + p, tiedD, left), vx, result);
      if (has(call, Z)) result *= silu(loadUpTo(data<T>(in(call, Z)) + batch * in(call,
          Z).stride[0] + h * headStride(in(call, Z)) + p, left));
      storeUpTo(data<T>(y) + (batch * heads + h) * rows + p, result, left);
    }
  });
}

int32_t selectiveStateUpdate(const MMCall* c) {
  using namespace ops::selective_state_update;
  const bool tied = in(c, STATE).ndim == 4 && in(c, DT).ndim == 2;
  if (!numel(in(c, X))) return MM_OK;
  dispatchFloat(in(c, X).dtype, [&](auto t) {
    using T = decltype(t);
    if (in(c, A).dtype == MM_F32) tied ? update<T, float, true>(c) : update<T, float, false>(c);
    else tied ? update<T, T, true>(c) : update<T, T, false>(c);
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(selective_state_update, {"selectiveStateUpdate", "rows", nullptr, nullptr, selectiveStateUpdate})
