#include "cuda/activation.cuh"

#include "ops/activation.h"

namespace mm::cuda {
namespace {

// y, z: the outputs, dense and alike; null where absent.
template <class Op, int N>
int32_t elementwise(const MMCall* c, const MMTensorView* const (&inputs)[N], const MMTensorView* y, const MMTensorView* z = nullptr) {
  static_assert(N == Op::kInputs);
  const MMTensorView* dense = y ? y : z;
  if (!dense || !numel(*dense)) return MM_OK;
  Nest<N + 1> nest;
  for (int i = 0; i < dense->ndim; i++) {
    int64_t strides[N + 1];
    for (int k = 0; k < N; k++) strides[k] = inputs[k]->stride[i];
    strides[N] = dense->stride[i];
    nest.push(dense->shape[i], strides);
  }
  nest.coalesce();
  const int axes = nest.ndim - 1;
  const int64_t rows = nest.count(axes), columns = nest.size[axes];
  return dispatchFloat(dense->dtype, [&](auto t) {
    using T = decltype(t);
    ActivationOperands<T, N, Op::kOutputs> operands;
    bool vectors = true;
    for (int k = 0; k < N; k++) {
      operands.in[k] = data<const T>(*inputs[k]);
      vectors = vectors && aligned(16, operands.in[k]) && nest.stride[k][axes] == 1;
    }
    for (int m = 0; m < Op::kOutputs; m++) {
      const MMTensorView* to = m ? z : y;
      operands.out[m] = to ? data<T>(*to) : nullptr;
      vectors = vectors && aligned(16, operands.out[m]);
    }
    for (int k = 0; k <= N; k++)
      for (int i = 0; i < axes; i++) vectors = vectors && nest.stride[k][i] % kVector<T> == 0;
    return dispatchBool(vectors, [&](auto wide) {
      constexpr bool kWide = decltype(wide)::value;
      constexpr int U = kActivationVectors<Op>, V = kWide ? kVector<T> : 1;
      int lanes = 1;
      while (lanes < 256 && int64_t(lanes) * U * V < columns) lanes *= 2;
      const int64_t pieces = ceilDiv(columns, int64_t(lanes) * U * V);
      return launch(c, activationKernel<Op, T, kWide>, dim3(unsigned(ceilDiv(rows * pieces, 256 / lanes))), dim3(256), 0, operands, nest,
          rows, pieces, lanes);
    });
  });
}

template <class Op>
int32_t forward(const MMCall* c) {
  using namespace ops::activation;
  return elementwise<Op, 1>(c, {&in(c, X)}, &out(c, Y));
}
template <class Op>
int32_t backward(const MMCall* c) {
  using namespace ops::activation_bwd;
  return elementwise<Op, 2>(c, {&in(c, X), &in(c, DY)}, hasOut(c, DX) ? &out(c, DX) : nullptr);
}
int32_t swiglu(const MMCall* c) {
  using namespace ops::swiglu;
  return elementwise<SwigluOp, 2>(c, {&in(c, A), &in(c, B)}, &out(c, Y));
}
int32_t swigluBackward(const MMCall* c) {
  using namespace ops::swiglu_bwd;
  return elementwise<SwigluBackwardOp, 3>(c, {&in(c, A), &in(c, B), &in(c, DY)}, hasOut(c, DA) ? &out(c, DA) : nullptr,
      hasOut(c, DB) ? &out(c, DB) : nullptr);
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(activation,
    {"silu", "strided", nullptr, nullptr, forward<SiluOp>},
    {"gelu", "strided", nullptr, nullptr, forward<GeluOp>},
    {"swiglu", "strided", nullptr, nullptr, swiglu},
    {"siluBackward", "strided", nullptr, nullptr, backward<SiluBackwardOp>},
    {"geluBackward", "strided", nullptr, nullptr, backward<GeluBackwardOp>},
    {"swigluBackward", "strided", nullptr, nullptr, swigluBackward})
