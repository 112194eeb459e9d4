#include "cuda/pixel_shuffle.cuh"

#include "ops/pixel_shuffle.h"

namespace mm::cuda {
namespace {

// `joined` (n, tokens, 4c) and `grid` (n, 4 tokens, c) seen as (n * side, 2, side, 2c), both in the order of the grid.
void views(const MMTensorView& joined, const MMTensorView& grid, MMTensorView* joinedView, MMTensorView* gridView) {
  const int64_t tokens = joined.shape[1], run = joined.shape[2] / 2;
  int64_t side = 0;
  while (side * side < tokens) side++;
  const int64_t shape[4] = {joined.shape[0] * side, 2, side, run};
  const int64_t joinedStride[4] = {2 * side * run, run, 2 * run, 1}, gridStride[4] = {2 * side * run, side * run, run, 1};
  *joinedView = joined, *gridView = grid;
  joinedView->ndim = gridView->ndim = 4;
  for (int i = 0; i < 4; i++) {
    joinedView->shape[i] = gridView->shape[i] = shape[i];
    joinedView->stride[i] = joinedStride[i], gridView->stride[i] = gridStride[i];
  }
}

int32_t pixelShuffle(const MMCall* c) {
  using namespace ops::pixel_shuffle;
  MMTensorView joined, grid;
  views(out(c, Y), in(c, X), &joined, &grid);
  return copyView(c, grid, joined);
}
int32_t pixelShuffleBackward(const MMCall* c) {
  using namespace ops::pixel_shuffle_bwd;
  MMTensorView joined, grid;
  views(in(c, DY), out(c, DX), &joined, &grid);
  return copyView(c, joined, grid);
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(pixel_shuffle, {"pixelShuffle", "copy", nullptr, nullptr, pixelShuffle},
                {"pixelShuffleBackward", "copy", nullptr, nullptr, pixelShuffleBackward})
