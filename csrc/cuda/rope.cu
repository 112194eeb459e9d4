#include "cuda/rope.cuh"

#include <cmath>

#include "ops/rope.h"

namespace mm::cuda {
namespace {

template <class T>
RopeOperand<T> operand(const MMTensorView* x, const MMTensorView* y) {
  if (!x) return {};
  RopeOperand<T> o{data<T>(*x), data<T>(*y), {}, {}, int(x->shape[1])};
  for (int i = 0; i < 3; i++) o.xStride[i] = x->stride[i], o.yStride[i] = y->stride[i];
  return o;
}

// Whether vectors of V elements fit both halves of every row.
bool fits(const MMTensorView& v, int V, uint64_t bytes) {
  bool ok = v.shape[3] / 2 % V == 0 && aligned(bytes, v.data);
  for (int i = 0; i < 3; i++) ok = ok && (v.shape[i] <= 1 || v.stride[i] % V == 0);
  return ok;
}

template <class T, int V>
int32_t turnVectors(const MMCall* c, const MMTensorView* const (&x)[2], const MMTensorView* const (&y)[2], const RopeShape& shape,
                    const float* cos, const float* sin, const int32_t* ids) {
  const RopeOperand<T> q = operand<T>(x[0], y[0]), k = operand<T>(x[1], y[1]);
  return launch(c, ropeKernel<T, V, kRopeHeads>, dim3(unsigned(ceilDiv(shape.tokens * shape.groups * (shape.half / V), 128))), dim3(128), 0,
      q, k, shape, cos, sin, ids);
}

int32_t turn(const MMCall* c, bool inverse, bool transposed, const MMTensorView* const (&x)[2], const MMTensorView* const (&y)[2],
             const MMTensorView& cos, const MMTensorView& sin, const MMTensorView& ids) {
  if (!x[0] && !x[1]) return MM_OK;
  const MMTensorView& any = *(x[0] ? x[0] : x[1]);
  const auto groups = [](const MMTensorView* v) { return v ? int(ceilDiv(v->shape[1], kRopeHeads)) : 0; };
  const RopeShape shape{any.shape[0] * any.shape[2], int(any.shape[2]), int(any.shape[3] / 2), int(cos.shape[0]), groups(x[0]),
      groups(x[0]) + groups(x[1]), ids.shape[0] == 1, inverse != transposed ? -1.f : 1.f, transposed};
  return dispatchFloat(any.dtype, [&](auto type) {
    using T = decltype(type);
    bool vectors = aligned(32, cos.data, sin.data);
    for (int i = 0; i < 2; i++)
      if (x[i]) vectors = vectors && fits(*x[i], kVector<T>, 16) && fits(*y[i], kVector<T>, 16);
    const auto run = vectors ? turnVectors<T, kVector<T>> : turnVectors<T, 1>;
    return run(c, x, y, shape, data<float>(cos), data<float>(sin), data<int32_t>(ids));
  });
}

int32_t rope(const MMCall* c) {
  using namespace ops::rope;
  const MMTensorView* const x[2] = {&in(c, Q), &in(c, K)};
  const MMTensorView* const y[2] = {&out(c, Q_EMBED), &out(c, K_EMBED)};
  return turn(c, attrs<Attrs>(c).inverse != 0, false, x, y, in(c, COS), in(c, SIN), in(c, POSITION_IDS));
}

int32_t ropeBackward(const MMCall* c) {
  using namespace ops::rope_bwd;
  const bool q = hasOut(c, DQ), k = hasOut(c, DK);
  const MMTensorView* const x[2] = {q ? &in(c, D_Q_EMBED) : nullptr, k ? &in(c, D_K_EMBED) : nullptr};
  const MMTensorView* const y[2] = {q ? &out(c, DQ) : nullptr, k ? &out(c, DK) : nullptr};
  return turn(c, attrs<Attrs>(c).inverse != 0, true, x, y, in(c, COS), in(c, SIN), in(c, POSITION_IDS));
}

int32_t ropeTable(const MMCall* c) {
  using namespace ops::rope_table;
  const Attrs& a = attrs<Attrs>(c);
  const auto& cos = out(c, COS);
  const int64_t rows = cos.shape[0], half = a.headDim / 2;
  double base = a.theta;
  if (a.scaling == DYNAMIC && a.seqLen > a.maxPosition)
    base *= std::pow(a.factor * double(a.seqLen) / double(a.maxPosition) - (a.factor - 1), double(a.headDim) / double(a.headDim - 2));
  return launch(c, ropeTableKernel, dim3(unsigned(ceilDiv(ceilDiv(rows, kRopeRows) * half, 128))), dim3(128), 0, data<float>(cos),
                data<float>(out(c, SIN)), rows, int(half), float(base), float(a.factor), a.scaling == LINEAR);
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(rope, {"rope", "vectors", nullptr, nullptr, mm::cuda::rope},
                {"ropeBackward", "vectors", nullptr, nullptr, mm::cuda::ropeBackward},
                {"ropeTable", "rows", nullptr, nullptr, mm::cuda::ropeTable})
