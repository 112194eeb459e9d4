#include "cuda/embedding.cuh"

#include "ops/embedding.h"

namespace mm::cuda {
namespace {

int32_t embedding(const MMCall* c) {
  using namespace ops::embedding;
  const auto &w = in(c, WEIGHT), &ids = in(c, IDS), &y = out(c, Y);
  return moveRows(c, {Pick::Gather, w.data, nullptr, data<int32_t>(ids), nullptr, w.shape[0], numel(ids),
                      w.shape[1] * elementSize(w.dtype), y.data, nanPattern(w.dtype)});
}

uint64_t embeddingBackwardWorkspace(const MMCall* c) { return sumRowsWorkspace(numel(in(c, ops::embedding_bwd::IDS))); }

int32_t embeddingBackward(const MMCall* c) {
  using namespace ops::embedding_bwd;
  if (!hasOut(c, DWEIGHT)) return MM_OK;
  const auto &ids = in(c, IDS), &dy = in(c, DY), &dw = out(c, DWEIGHT);
  const int32_t status = setBytes(c, dw.data, 0, numel(dw) * int64_t(sizeof(float)));
  if (status != MM_OK) return status;
  return dispatchFloat(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const float* none = nullptr;
    return sumRows(c, data<int32_t>(ids), numel(ids), dw.shape[0], dw.shape[1], data<const T>(dy), none, data<float>(dw));
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(embedding, {"embedding", "rows", nullptr, nullptr, embedding},
                {"embeddingBackward", "sorted", nullptr, embeddingBackwardWorkspace, embeddingBackward})
