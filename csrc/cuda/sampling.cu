#include "cuda/sampling.cuh"

#include "ops/sampling.h"

namespace mm::cuda {
namespace {

int32_t argmaxRows(const MMCall* c, const MMTensorView& x, const MMTensorView& index) {
  const int64_t n = lastDim(x), rows = numel(index);
  const int lanes = walkLanes(n, rows, deviceOf(c).multiprocessors), threads = lanes == 32 ? 128 : lanes;
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, argmaxKernel<T>, dim3(unsigned(ceilDiv(rows, threads / lanes))), dim3(threads), 0, data<const T>(x),
        data<int32_t>(index), rowNest<1>({&x}), rows, n, lanes);
  });
}

int32_t argmax(const MMCall* c) { return argmaxRows(c, in(c, ops::argmax::X), out(c, ops::argmax::INDEX)); }

int32_t sample(const MMCall* c) {
  using namespace ops::sample;
  const auto& logits = in(c, LOGITS);
  const auto& a = attrs<Attrs>(c);
  if (!(a.temperature > 0)) return argmaxRows(c, logits, out(c, TOKEN));
  const int64_t n = lastDim(logits);
  const size_t shared = (a.topK > 0 && a.topK < n) || a.topP < 1 ? 2 * kHistogram * sizeof(uint32_t) : 0;
  return dispatchFloat(logits.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, sampleKernel<T>, dim3(unsigned(logits.shape[0])), dim3(kSampleThreads), shared, data<const T>(logits),
        logits.stride[0], data<int32_t>(out(c, TOKEN)), n, float(1. / a.temperature), a.topK, a.topP, uint64_t(a.seed), uint64_t(a.offset));
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(sampling,
    {"argmax", "rows", nullptr, nullptr, argmax},
    {"sample", "rows", nullptr, nullptr, sample})
