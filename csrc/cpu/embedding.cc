// embedding: rows copied by id. Backward: rows of dY added by id; each task owns a strip of columns and walks all ids in
// order, so no two tasks write one element and the order of the sums is that of the ids.
#include "ops/embedding.h"

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kStrip = 64;  // columns: four cache lines of dWeight

// Fails with the position of the first id that the table does not have.
int32_t checkIds(const MMCall* c, const MMTensorView& ids, int64_t rows) {
  const int64_t n = numel(ids);
  const int32_t* p = data<int32_t>(ids);
  int64_t bad = 0;
  for (int64_t i = 0; i < n; i++) bad += uint32_t(p[i]) >= uint64_t(rows);
  if (!bad) return MM_OK;
  int64_t first = 0;
  while (uint32_t(p[first]) < uint64_t(rows)) first++;
  char where[160] = "ids";
  int64_t size = n, rest = first;
  for (int i = 0, used = 3; i < ids.ndim; i++) {
    size /= ids.shape[i];
    used += std::snprintf(where + used, sizeof where - size_t(used), "%s%lld%s", i ? ", " : "[",
                          static_cast<long long>(rest / size), i + 1 < ids.ndim ? "" : "]");
    rest %= size;
  }
  return fail(c, "%s is %d; ids must lie in [0, %lld), the rows of weight (%lld of %lld ids do not)", where, p[first],
              static_cast<long long>(rows), static_cast<long long>(bad), static_cast<long long>(n));
}

int32_t embedding(const MMCall* c) {
  using namespace ops::embedding;
  const auto &w = in(c, WEIGHT), &ids = in(c, IDS), &y = out(c, Y);
  if (const int32_t status = checkIds(c, ids, w.shape[0])) return status;
  const int64_t bytes = w.shape[1] * (w.dtype == MM_F32 ? 4 : 2);
  const int32_t* id = data<int32_t>(ids);
  parallelFor(numel(ids), 1 + 65536 / (bytes + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) std::memcpy(data<char>(y) + i * bytes, data<char>(w) + id[i] * bytes, size_t(bytes));
  });
  return MM_OK;
}

int32_t embeddingBackward(const MMCall* c) {
  using namespace ops::embedding_bwd;
  if (!hasOut(c, DWEIGHT)) return MM_OK;
  const auto &ids = in(c, IDS), &dy = in(c, DY), &dw = out(c, DWEIGHT);
  const int64_t rows = dw.shape[0], n = dw.shape[1], count = numel(ids);
  if (const int32_t status = checkIds(c, ids, rows)) return status;
  float* to = data<float>(dw);
  parallelFor(rows * n, 1 << 16,
              [&](int64_t begin, int64_t end, int) { std::memset(to + begin, 0, size_t(end - begin) * sizeof(float)); });
  const int32_t* id = data<int32_t>(ids);
  dispatchFloat(dy.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor((n + kStrip - 1) / kStrip, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t first = begin * kStrip, last = end * kStrip < n ? end * kStrip : n;
      for (int64_t i = 0; i < count; i++) {
        float* row = to + id[i] * n;
        for (int64_t j = first; j < last; j += VL)
          storeUpTo(row + j, loadUpTo(row + j, last - j) + loadUpTo(data<T>(dy) + i * n + j, last - j), last - j);
      }
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(embedding, {"embedding", "rows", nullptr, nullptr, embedding},
               {"embeddingBackward", "strips", nullptr, nullptr, embeddingBackward})
