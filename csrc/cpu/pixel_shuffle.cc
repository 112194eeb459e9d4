// pixelShuffle: y[n, r*(h/2) + q, (2i + j)*c + k] = x[n, (2r + i)*h + 2q + j, k]: two tokens that are neighbours in a row
// of the grid stay neighbours in memory, so each result token is two runs of 2c channels. Backward: the same moves back.
#include "ops/pixel_shuffle.h"

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

// `joined` (n, tokens, 4c) and `grid` (n, 4 tokens, c)
template <bool join>
void shuffle(const MMTensorView& joined, char* four, char* one) {
  const int64_t tokens = joined.shape[1], run = joined.shape[2] / 2 * (joined.dtype == MM_F32 ? 4 : 2);
  int64_t half = 0;
  while (half * half < tokens) half++;
  parallelFor(joined.shape[0] * half, 1 + 32768 / (2 * half * run + 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)  // one row of joined tokens, two rows of the grid
      for (int64_t q = 0; q < half; q++)
        for (int64_t lower = 0; lower < 2; lower++) {
          char* a = four + ((i * half + q) * 2 + lower) * run;
          char* b = one + ((i * 2 + lower) * half + q) * run;
          if (join) std::memcpy(a, b, size_t(run));
          else std::memcpy(b, a, size_t(run));
        }
  });
}

int32_t pixelShuffle(const MMCall* c) {
  using namespace ops::pixel_shuffle;
  if (numel(out(c, Y))) shuffle<true>(out(c, Y), data<char>(out(c, Y)), data<char>(in(c, X)));
  return MM_OK;
}
int32_t pixelShuffleBackward(const MMCall* c) {
  using namespace ops::pixel_shuffle_bwd;
  if (numel(in(c, DY))) shuffle<false>(in(c, DY), data<char>(in(c, DY)), data<char>(out(c, DX)));
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(pixel_shuffle, {"pixelShuffle", "runs", nullptr, nullptr, pixelShuffle},
               {"pixelShuffleBackward", "runs", nullptr, nullptr, pixelShuffleBackward})
