#include "cuda/index.cuh"

#include "ops/axis_view.h"
#include "ops/index.h"

namespace mm::cuda {
namespace {

int64_t rowBytes(const MMTensorView& v) { return rowSize(v) * elementSize(v.dtype); }

int32_t gatherRows(const MMCall* c) {
  using namespace ops::gather_rows;
  const auto &x = in(c, X), &index = in(c, INDEX), &y = out(c, Y);
  const bool integers = x.dtype == MM_I32 || x.dtype == MM_U8;
  return moveRows(c, {Pick::Gather, x.data, nullptr, data<int32_t>(index), nullptr, x.shape[0], index.shape[0], rowBytes(x), y.data,
                      integers ? zeroPattern() : nanPattern(x.dtype)});
}

uint64_t sumWorkspace(const MMCall* c) { return sumRowsWorkspace(in(c, ops::scatter_rows::INDEX).shape[0]); }

int32_t gatherRowsBackward(const MMCall* c) {
  using namespace ops::gather_rows_bwd;
  const auto &index = in(c, INDEX), &dy = in(c, DY), &dx = out(c, DX);
  const int32_t status = setBytes(c, dx.data, 0, numel(dx) * elementSize(dx.dtype));
  if (status != MM_OK) return status;
  return dispatchFloat(dx.dtype, [&](auto t) {
    using T = decltype(t);
    const T* none = nullptr;
    return sumRows(c, data<int32_t>(index), index.shape[0], dx.shape[0], rowSize(dx), data<const T>(dy), none, data<T>(dx));
  });
}

int32_t scatterAddRows(const MMCall* c) {
  using namespace ops::scatter_rows;
  const auto &x = in(c, X), &index = in(c, INDEX), &src = in(c, SRC), &y = out(c, Y);
  const int32_t status = copyView(c, x, y);
  if (status != MM_OK) return status;
  return dispatchFloat(y.dtype, [&](auto t) {
    using T = decltype(t);
    return sumRows(c, data<int32_t>(index), index.shape[0], y.shape[0], rowSize(y), data<const T>(src), data<const T>(x), data<T>(y));
  });
}

// last[r] = the last entry of index that names row r; all -1 before.
__global__ void lastEntryKernel(const int32_t* __restrict__ index, int64_t entries, int32_t* __restrict__ last, int64_t rows) {
  const int64_t m = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (m < entries && index[m] >= 0 && index[m] < rows) atomicMax(last + index[m], int32_t(m));
}

uint64_t lastBytes(int64_t rows) { return uint64_t(rows) * sizeof(int32_t); }
// Fills the workspace with the last entry that names each row.
int32_t findLast(const MMCall* c, const MMTensorView& index, int64_t rows) {
  int32_t* last = static_cast<int32_t*>(c->workspace);
  const int32_t status = setBytes(c, last, 0xff, int64_t(lastBytes(rows)));
  if (status != MM_OK) return status;
  const int64_t entries = index.shape[0];
  return launch(c, lastEntryKernel, dim3(unsigned(ceilDiv(entries, 256))), dim3(256), 0, data<const int32_t>(index), entries, last, rows);
}

uint64_t scatterWorkspace(const MMCall* c) { return lastBytes(in(c, ops::scatter_rows::X).shape[0]); }

int32_t scatterRows(const MMCall* c) {
  using namespace ops::scatter_rows;
  const auto &x = in(c, X), &index = in(c, INDEX), &src = in(c, SRC), &y = out(c, Y);
  const int32_t status = findLast(c, index, x.shape[0]);
  if (status != MM_OK) return status;
  return moveRows(c, {Pick::Replace, x.data, src.data, nullptr, static_cast<int32_t*>(c->workspace), x.shape[0], x.shape[0], rowBytes(x),
                      y.data, zeroPattern()});
}

uint64_t scatterBackwardWorkspace(const MMCall* c) { return lastBytes(in(c, ops::scatter_rows_bwd::DY).shape[0]); }

int32_t scatterRowsBackward(const MMCall* c) {
  using namespace ops::scatter_rows_bwd;
  const auto &index = in(c, INDEX), &dy = in(c, DY);
  const int32_t* last = static_cast<int32_t*>(c->workspace);
  int32_t status = findLast(c, index, dy.shape[0]);
  if (status == MM_OK && hasOut(c, DX))
    status = moveRows(c, {Pick::Kept, dy.data, nullptr, nullptr, last, dy.shape[0], dy.shape[0], rowBytes(dy), out(c, DX).data,
                          zeroPattern()});
  if (status == MM_OK && hasOut(c, DSRC))
    status = moveRows(c, {Pick::Replaced, dy.data, nullptr, data<int32_t>(index), last, dy.shape[0], index.shape[0], rowBytes(dy),
                          out(c, DSRC).data, zeroPattern()});
  return status;
}

int32_t scatterAddRowsBackward(const MMCall* c) {
  using namespace ops::scatter_rows_bwd;
  const auto &index = in(c, INDEX), &dy = in(c, DY);
  int32_t status = hasOut(c, DX) ? copyView(c, dy, out(c, DX)) : int32_t(MM_OK);
  if (status == MM_OK && hasOut(c, DSRC))
    status = moveRows(c, {Pick::Gather, dy.data, nullptr, data<int32_t>(index), nullptr, dy.shape[0], index.shape[0], rowBytes(dy),
                          out(c, DSRC).data, zeroPattern()});
  return status;
}

int32_t concat(const MMCall* c) {
  using namespace ops::concat;
  const auto& y = out(c, Y);
  const int64_t axis = axisOf(attrs<Attrs>(c).axis, y);
  Copies copies(c, elementSize(y.dtype));
  int64_t start = 0;
  for (int i = 0; i < countIn(c, X); i++) {
    const auto& x = in(c, X, i);
    const int32_t status = copies.add(&x, slice(y, axis, start, x.shape[axis]));
    if (status != MM_OK) return status;
    start += x.shape[axis];
  }
  return copies.run();
}

int32_t concatBackward(const MMCall* c) {
  using namespace ops::concat_bwd;
  const auto& dy = in(c, DY);
  const int64_t axis = axisOf(attrs<Attrs>(c).axis, dy);
  Copies copies(c, elementSize(dy.dtype));
  int64_t start = 0;
  for (int i = 0; i < countIn(c, X); i++) {
    const auto& dx = out(c, DX, i);
    const MMTensorView part = slice(dy, axis, start, dx.shape[axis]);
    const int32_t status = copies.add(&part, dx);
    if (status != MM_OK) return status;
    start += dx.shape[axis];
  }
  return copies.run();
}

int32_t sliceBackward(const MMCall* c) {
  using namespace ops::slice_bwd;
  const auto &dy = in(c, DY), &dx = out(c, DX);
  const auto& a = attrs<Attrs>(c);
  const int64_t axis = axisOf(a.axis, dx), length = dy.shape[axis], end = a.start + length;
  Copies copies(c, elementSize(dx.dtype));
  int32_t status = copies.add(nullptr, slice(dx, axis, 0, a.start));
  if (status == MM_OK) status = copies.add(&dy, slice(dx, axis, a.start, length));
  if (status == MM_OK) status = copies.add(nullptr, slice(dx, axis, end, a.length - end));
  return status == MM_OK ? copies.run() : status;
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(index, {"gatherRows", "rows", nullptr, nullptr, gatherRows},
                {"gatherRowsBackward", "sorted", nullptr, sumWorkspace, gatherRowsBackward},
                {"scatterRows", "rows", nullptr, scatterWorkspace, scatterRows},
                {"scatterRowsBackward", "rows", nullptr, scatterBackwardWorkspace, scatterRowsBackward},
                {"scatterAddRows", "sorted", nullptr, sumWorkspace, scatterAddRows},
                {"scatterAddRowsBackward", "rows", nullptr, nullptr, scatterAddRowsBackward},
                {"concat", "parts", nullptr, nullptr, concat}, {"concatBackward", "parts", nullptr, nullptr, concatBackward},
                {"sliceBackward", "parts", nullptr, nullptr, sliceBackward})
