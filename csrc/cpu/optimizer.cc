// adamW and gradNorm over lists of tensors. The lists are cut into blocks of 16384 elements; a table of first blocks in
// the workspace finds a block's tensor, so that many small tensors cost no more than one large one. The blocks'
// sums of squares are added in order, in double.
#include "ops/optimizer.h"

#include <cmath>

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kBlock = 16384;

int64_t blocksOf(const MMTensorView& v) { return (numel(v) + kBlock - 1) / kBlock; }
int64_t totalBlocks(const MMCall* c, int slot) {
  int64_t n = 0;
  for (int i = 0; i < countIn(c, slot); i++) n += blocksOf(in(c, slot, i));
  return n;
}
// first[i] = first block of tensor i; returns their number
int64_t firstBlocks(const MMCall* c, int slot, int64_t* first) {
  int64_t n = 0;
  for (int i = 0; i < countIn(c, slot); i++) {
    first[i] = n;
    n += blocksOf(in(c, slot, i));
  }
  first[countIn(c, slot)] = n;
  return n;
}
// The tensor that holds this block.
int owner(const int64_t* first, int count, int64_t block) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first[middle] <= block ? low : high) = middle;
  }
  return low;
}

MM_INLINE vf squareRoot(vf x) {
  vf r;
  for (int i = 0; i < VL; i++) r[i] = __builtin_sqrtf(x[i]);
  return r;
}

struct AdamFactors {
  float decay, rest1, beta2, rest2, stepSize, inverseRoot, eps, gradScale;
};

template <class G, class C>
void adamBlock(const AdamFactors& f, int64_t n, float* p, const G* g, float* m, float* v, C* copy) {
  for (int64_t j = 0; j < n; j += VL) {
    const int64_t left = n - j;
    const vf vg = loadUpTo(g + j, left) * f.gradScale;
    const vf old = loadUpTo(m + j, left), vm = old + (vg - old) * f.rest1;
    const vf vv = loadUpTo(v + j, left) * f.beta2 + f.rest2 * vg * vg;
    const vf vp = loadUpTo(p + j, left) * f.decay - f.stepSize * vm / (squareRoot(vv) * f.inverseRoot + f.eps);
    storeUpTo(p + j, vp, left);
    storeUpTo(m + j, vm, left);
    storeUpTo(v + j, vv, left);
    if (copy) storeUpTo(copy + j, vp, left);
  }
}

uint64_t adamWorkspace(const MMCall* c) { return uint64_t(countIn(c, ops::adam_w::PARAMS) + 1) * sizeof(int64_t); }

int32_t adamW(const MMCall* c) {
  using namespace ops::adam_w;
  const auto& a = attrs<Attrs>(c);
  AdamFactors f;
  f.decay = float(1. - a.lr * a.weightDecay);
  f.rest1 = float(1. - a.beta1), f.beta2 = float(a.beta2), f.rest2 = float(1. - a.beta2), f.eps = float(a.eps);
  f.stepSize = float(a.lr / (1. - std::pow(a.beta1, double(a.step))));
  f.inverseRoot = float(1. / std::sqrt(1. - std::pow(a.beta2, double(a.step))));
  f.gradScale = has(c, GRAD_SCALE) ? *data<float>(in(c, GRAD_SCALE)) : 1.f;
  int64_t* first = static_cast<int64_t*>(c->workspace);
  const int count = countIn(c, PARAMS);
  const bool copies = has(c, COMPUTE);
  parallelFor(firstBlocks(c, PARAMS, first), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; block++) {
      const int i = owner(first, count, block);
      const int64_t at = (block - first[i]) * kBlock, size = numel(in(c, PARAMS, i)), n = size - at < kBlock ? size - at : kBlock;
      float *p = data<float>(in(c, PARAMS, i)) + at, *m = data<float>(in(c, EXP_AVG, i)) + at,
          *v = data<float>(in(c, EXP_AVG_SQ, i)) + at;
      dispatchFloat(in(c, GRADS, i).dtype, [&](auto t) {
        using G = decltype(t);
        const G* g = data<G>(in(c, GRADS, i)) + at;
        if (!copies) return adamBlock<G, float>(f, n, p, g, m, v, nullptr);
        dispatchFloat(in(c, COMPUTE, i).dtype,
                      [&](auto u) { adamBlock(f, n, p, g, m, v, data<decltype(u)>(in(c, COMPUTE, i)) + at); });
      });
    }
  });
  return MM_OK;
}

uint64_t gradNormWorkspace(const MMCall* c) {
  return uint64_t(countIn(c, ops::grad_norm::GRADS) + 1) * sizeof(int64_t) +
         uint64_t(totalBlocks(c, ops::grad_norm::GRADS)) * sizeof(double);
}

int32_t gradNorm(const MMCall* c) {
  using namespace ops::grad_norm;
  const int count = countIn(c, GRADS);
  int64_t* first = static_cast<int64_t*>(c->workspace);
  const int64_t blocks = firstBlocks(c, GRADS, first);
  double* partial = reinterpret_cast<double*>(first + count + 1);
  parallelFor(blocks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; block++) {
      const int i = owner(first, count, block);
      const auto& grad = in(c, GRADS, i);
      const int64_t at = (block - first[i]) * kBlock, size = numel(grad), n = size - at < kBlock ? size - at : kBlock;
      dispatchFloat(grad.dtype, [&](auto t) {
        using T = decltype(t);
        const T* g = data<T>(grad) + at;
        double total = 0;
        for (int64_t start = 0; start < n; start += 1024) {  // short f32 sums
          const int64_t stop = start + 1024 < n ? start + 1024 : n;
          vf acc{};
          for (int64_t j = start; j < stop; j += VL) {
            const vf v = loadUpTo(g + j, stop - j);
            acc = fma(v, v, acc);
          }
          total += sum(acc);
        }
        partial[block] = total;
      });
    }
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; b++) total += partial[b];
  const double norm = std::sqrt(total), limit = attrs<Attrs>(c).maxNorm;
  const double scale = limit > 0 ? limit / (norm + 1e-6) : 1.;
  *data<float>(out(c, NORM)) = float(norm);
  *data<float>(out(c, SCALE)) = float(scale > 1. ? 1. : scale);
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(optimizer, {"adamW", "multi-tensor", nullptr, adamWorkspace, adamW},
               {"gradNorm", "multi-tensor", nullptr, gradNormWorkspace, gradNorm})
