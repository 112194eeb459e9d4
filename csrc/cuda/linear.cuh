// Column sums, for bias gradients: x (rows, n) -> (n) f32. A block sums 32 columns over a slice of the rows, 8 rows at once; the
// slices are added in order by addPartials.
#pragma once
#include "cuda/common/rows.cuh"

namespace mm::cuda {

template <class T>
__global__ void __launch_bounds__(256) columnSumsKernel(const T* __restrict__ x, float* __restrict__ partial, int64_t rows, int64_t n, int64_t slice) {
  __shared__ float sums[8][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t(blockIdx.x) * 32 + lane, first = int64_t(blockIdx.y) * slice, last = min(rows, first + slice);
  float sum = 0.f;
  if (column < n)
    for (int64_t i = first + warp; i < last; i += 8) sum += toFloat(x[i * n + column]);
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= n) return;
  for (int w = 1; w < 8; w++) sum += sums[w][lane];
  partial[blockIdx.y * n + column] = sum;
}

}  // namespace mm::cuda
