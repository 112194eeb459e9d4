// Rows by index, concat and the gradient of a slice. Sums of rows with one index run in the order of the index list:
// the list is first sorted by row (counting sort into the workspace), then every target row is made once, in f32.
#include "ops/index.h"

#include "cpu/kernel.h"
#include "cpu/strided.h"
#include "ops/axis_view.h"

namespace mm::cpu::MM_ISA {
namespace {

// Where the index leaves [0, rows), else -1.
int64_t firstInvalid(const MMTensorView& index, int64_t rows) {
  for (int64_t m = 0; m < index.shape[0]; m++)
    if (data<int32_t>(index)[m] < 0 || data<int32_t>(index)[m] >= rows) return m;
  return -1;
}
int32_t failIndex(const MMCall* c, const MMTensorView& index, int64_t m, int64_t rows) {
  return fail(c, "index[%lld] is %d; expected a row in [0, %lld)", static_cast<long long>(m), data<int32_t>(index)[m],
      static_cast<long long>(rows));
}

constexpr int64_t kGrainBytes = 65536;

int32_t gatherRows(const MMCall* c) {
  using namespace ops::gather_rows;
  const auto &x = in(c, X), &index = in(c, INDEX), &y = out(c, Y);
  const int64_t bad = firstInvalid(index, x.shape[0]);
  if (bad >= 0) return failIndex(c, index, bad, x.shape[0]);
  const int64_t bytes = rowSize(x) * elementSize(x.dtype);
  parallelFor(index.shape[0], 1 + kGrainBytes / (bytes + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; m++)
      std::memcpy(data<char>(y) + m * bytes, data<char>(x) + data<int32_t>(index)[m] * bytes, size_t(bytes));
  });
  return MM_OK;
}

// first (rows + 1) and order (M): the entries of `index` that point to row r are order[first[r] .. first[r + 1]), ascending.
struct ByRow {
  int32_t *first, *order;
};
uint64_t byRowBytes(int64_t rows, int64_t entries) { return uint64_t(rows + 2 + entries) * sizeof(int32_t); }
ByRow sortByRow(const MMTensorView& index, int64_t rows, void* workspace) {
  const int64_t entries = index.shape[0];
  const int32_t* list = data<int32_t>(index);
  int32_t* count = static_cast<int32_t*>(workspace);  // count[r + 2], shifted so that the second pass leaves first[r]
  std::memset(count, 0, size_t(rows + 2) * sizeof(int32_t));
  for (int64_t m = 0; m < entries; m++) count[list[m] + 2]++;
  for (int64_t r = 2; r < rows + 2; r++) count[r] += count[r - 1];
  int32_t* order = count + rows + 2;
  for (int64_t m = 0; m < entries; m++) order[count[list[m] + 1]++] = int32_t(m);
  return {count, order};
}

uint64_t scatterAddWorkspace(const MMCall* c) {
  using namespace ops::scatter_rows;
  return byRowBytes(in(c, X).shape[0], in(c, INDEX).shape[0]);
}

// y[r] = base[r] + sum of src[m] with index[m] = r; base may be null (zero)
void scatterAdd(const MMTensorView* base, const MMTensorView& index, const MMTensorView& src, const MMTensorView& y,
    void* workspace) {
  const int64_t rows = y.shape[0], n = rowSize(y);
  const ByRow by = sortByRow(index, rows, workspace);
  dispatchFloat(y.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(rows, 1 + kGrainBytes / int64_t(n * sizeof(T) + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++)
        for (int64_t j = 0; j < n; j += VL) {
          vf acc = base ? loadUpTo(data<T>(*base) + r * n + j, n - j) : vf{};
          for (int32_t i = by.first[r]; i < by.first[r + 1]; i++) acc += loadUpTo(data<T>(src) + by.order[i] * n + j, n - j);
          storeUpTo(data<T>(y) + r * n + j, acc, n - j);
        }
    });
  });
}

int32_t gatherRowsBackward(const MMCall* c) {
  using namespace ops::gather_rows_bwd;
  const auto &index = in(c, INDEX), &dx = out(c, DX);
  const int64_t bad = firstInvalid(index, dx.shape[0]);
  if (bad >= 0) return failIndex(c, index, bad, dx.shape[0]);
  scatterAdd(nullptr, index, in(c, DY), dx, c->workspace);
  return MM_OK;
}

int32_t scatterAddRows(const MMCall* c) {
  using namespace ops::scatter_rows;
  const auto &x = in(c, X), &index = in(c, INDEX);
  const int64_t bad = firstInvalid(index, x.shape[0]);
  if (bad >= 0) return failIndex(c, index, bad, x.shape[0]);
  scatterAdd(&x, index, in(c, SRC), out(c, Y), c->workspace);
  return MM_OK;
}

// last[r] = the last entry of index that points to r, or -1
uint64_t lastBytes(int64_t rows) { return uint64_t(rows) * sizeof(int32_t); }
const int32_t* lastEntries(const MMTensorView& index, int64_t rows, void* workspace) {
  int32_t* last = static_cast<int32_t*>(workspace);
  for (int64_t r = 0; r < rows; r++) last[r] = -1;
  for (int64_t m = 0; m < index.shape[0]; m++) last[data<int32_t>(index)[m]] = int32_t(m);
  return last;
}

uint64_t scatterWorkspace(const MMCall* c) { return lastBytes(in(c, ops::scatter_rows::X).shape[0]); }

int32_t scatterRows(const MMCall* c) {
  using namespace ops::scatter_rows;
  const auto &x = in(c, X), &index = in(c, INDEX), &src = in(c, SRC), &y = out(c, Y);
  const int64_t rows = x.shape[0], bytes = rowSize(x) * elementSize(x.dtype), bad = firstInvalid(index, rows);
  if (bad >= 0) return failIndex(c, index, bad, rows);
  const int32_t* last = lastEntries(index, rows, c->workspace);
  parallelFor(rows, 1 + kGrainBytes / (bytes + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++)
      std::memcpy(data<char>(y) + r * bytes, last[r] < 0 ? data<char>(x) + r * bytes : data<char>(src) + last[r] * bytes,
          size_t(bytes));
  });
  return MM_OK;
}

uint64_t scatterBackwardWorkspace(const MMCall* c) { return lastBytes(in(c, ops::scatter_rows_bwd::DY).shape[0]); }

// ADD: of scatterAddRows, where nothing is replaced
template <bool ADD>
int32_t scatterRowsBackward(const MMCall* c) {
  using namespace ops::scatter_rows_bwd;
  const auto &index = in(c, INDEX), &dy = in(c, DY);
  const int64_t rows = dy.shape[0], bytes = rowSize(dy) * elementSize(dy.dtype), bad = firstInvalid(index, rows);
  if (bad >= 0) return failIndex(c, index, bad, rows);
  const int32_t* last = ADD ? nullptr : lastEntries(index, rows, c->workspace);
  if (hasOut(c, DX))
    parallelFor(rows, 1 + kGrainBytes / (bytes + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; r++)
        if (ADD || last[r] < 0) std::memcpy(data<char>(out(c, DX)) + r * bytes, data<char>(dy) + r * bytes, size_t(bytes));
        else std::memset(data<char>(out(c, DX)) + r * bytes, 0, size_t(bytes));
    });
  if (hasOut(c, DSRC))
    parallelFor(index.shape[0], 1 + kGrainBytes / (bytes + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t m = begin; m < end; m++) {
        const int32_t r = data<int32_t>(index)[m];
        if (ADD || last[r] == m) std::memcpy(data<char>(out(c, DSRC)) + m * bytes, data<char>(dy) + r * bytes, size_t(bytes));
        else std::memset(data<char>(out(c, DSRC)) + m * bytes, 0, size_t(bytes));
      }
    });
  return MM_OK;
}

int32_t concat(const MMCall* c) {
  using namespace ops::concat;
  const auto& y = out(c, Y);
  const int64_t axis = axisOf(attrs<Attrs>(c).axis, y);
  int64_t start = 0;
  for (int i = 0; i < countIn(c, X); i++) {
    const auto& x = in(c, X, i);
    copyStrided(x, slice(y, axis, start, x.shape[axis]));
    start += x.shape[axis];
  }
  return MM_OK;
}

int32_t concatBackward(const MMCall* c) {
  using namespace ops::concat_bwd;
  const auto& dy = in(c, DY);
  const int64_t axis = axisOf(attrs<Attrs>(c).axis, dy);
  int64_t start = 0;
  for (int i = 0; i < countIn(c, X); i++) {
    const auto& dx = out(c, DX, i);
    copyStrided(slice(dy, axis, start, dx.shape[axis]), dx);
    start += dx.shape[axis];
  }
  return MM_OK;
}

// Zeroes a view whose axes after `axis` are dense: dX outside of the slice.
void zeroSlice(const MMTensorView& v, int64_t axis, int64_t start, int64_t length) {
  int64_t outer = 1;
  for (int64_t i = 0; i < axis; i++) outer *= v.shape[i];
  const int64_t size = elementSize(v.dtype), step = v.shape[axis] * v.stride[axis] * size, bytes = length * v.stride[axis] * size;
  if (!bytes) return;
  parallelFor(outer, 1 + kGrainBytes / bytes, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) std::memset(data<char>(v) + i * step + start * v.stride[axis] * size, 0, size_t(bytes));
  });
}

int32_t sliceBackward(const MMCall* c) {
  using namespace ops::slice_bwd;
  const auto &dy = in(c, DY), &dx = out(c, DX);
  const auto& a = attrs<Attrs>(c);
  const int64_t axis = axisOf(a.axis, dx), length = dy.shape[axis];
  zeroSlice(dx, axis, 0, a.start);
  zeroSlice(dx, axis, a.start + length, a.length - a.start - length);
  copyStrided(dy, slice(dx, axis, a.start, length));
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(index, {"gatherRows", "rows", nullptr, nullptr, gatherRows},
               {"gatherRowsBackward", "rows", nullptr, scatterAddWorkspace, gatherRowsBackward},
               {"scatterRows", "rows", nullptr, scatterWorkspace, scatterRows},
               {"scatterRowsBackward", "rows", nullptr, scatterBackwardWorkspace, scatterRowsBackward<false>},
               {"scatterAddRows", "rows", nullptr, scatterAddWorkspace, scatterAddRows},
               {"scatterAddRowsBackward", "rows", nullptr, nullptr, scatterRowsBackward<true>},
               {"concat", "strided", nullptr, nullptr, concat}, {"concatBackward", "strided", nullptr, nullptr, concatBackward},
               {"sliceBackward", "strided", nullptr, nullptr, sliceBackward})
