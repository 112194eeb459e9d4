#include "cuda/optimizer.cuh"

#include <cmath>

#include "ops/optimizer.h"

namespace mm::cuda {
namespace {

// Elements of a block: 64 Ki, less where that left multiprocessors idle.
int32_t chunkOf(const MMCall* c, int slot) {
  int64_t total = 0;
  for (int i = 0; i < countIn(c, slot); i++) total += numel(in(c, slot, i));
  const int64_t wanted = total / (int64_t(deviceOf(c).multiprocessors) * 16);
  int32_t chunk = 2048;
  while (chunk < 65536 && chunk < wanted) chunk *= 2;
  return chunk;
}

int32_t adamW(const MMCall* c) {
  using namespace ops::adam_w;
  const auto& a = attrs<Attrs>(c);
  AdamTable t{};
  t.factors.decay = float(1. - a.lr * a.weightDecay);
  t.factors.rest1 = float(1. - a.beta1);
  t.factors.beta2 = float(a.beta2);
  t.factors.rest2 = float(1. - a.beta2);
  t.factors.eps = float(a.eps);
  t.factors.stepSize = float(a.lr / (1. - std::pow(a.beta1, double(a.step))));
  t.factors.inverseRoot = float(1. / std::sqrt(1. - std::pow(a.beta2, double(a.step))));
  t.gradScale = has(c, GRAD_SCALE) ? data<const float>(in(c, GRAD_SCALE)) : nullptr;
  t.chunk = chunkOf(c, PARAMS);
  uint32_t blocks = 0;
  const int count = countIn(c, PARAMS);
  for (int i = 0; i < count; i++) {
    const auto& param = in(c, PARAMS, i);
    const int64_t n = numel(param);
    if (n) {
      const int k = t.count++;
      t.p[k] = data<float>(param);
      t.g[k] = in(c, GRADS, i).data;
      t.m[k] = data<float>(in(c, EXP_AVG, i));
      t.v[k] = data<float>(in(c, EXP_AVG_SQ, i));
      t.copy[k] = has(c, COMPUTE) ? in(c, COMPUTE, i).data : nullptr;
      t.n[k] = n;
      t.first[k] = blocks;
      t.gradDtype[k] = uint8_t(in(c, GRADS, i).dtype);
      t.copyDtype[k] = has(c, COMPUTE) ? uint8_t(in(c, COMPUTE, i).dtype) : 0;
      t.wide[k] = aligned(16, t.p[k], t.m[k], t.v[k]) && aligned(t.gradDtype[k] == MM_F32 ? 16 : 8, static_cast<const char*>(t.g[k])) &&
                  aligned(t.copyDtype[k] == MM_F32 ? 16 : 8, static_cast<const char*>(t.copy[k]));
      blocks += uint32_t(ceilDiv(n, t.chunk));
    }
    if (t.count && (t.count == kAdamTensors || i + 1 == count)) {
      const int32_t status = launch(c, adamWKernel, dim3(blocks), dim3(256), 0, t);
      if (status != MM_OK) return status;
      t.count = 0;
      blocks = 0;
    }
  }
  return MM_OK;
}

uint64_t gradNormWorkspace(const MMCall* c) {
  using namespace ops::grad_norm;
  const int32_t chunk = chunkOf(c, GRADS);
  uint64_t blocks = 0;
  for (int i = 0; i < countIn(c, GRADS); i++) blocks += uint64_t(ceilDiv(numel(in(c, GRADS, i)), chunk));
  return blocks * sizeof(double);
}

int32_t gradNorm(const MMCall* c) {
  using namespace ops::grad_norm;
  double* partial = static_cast<double*>(c->workspace);
  GradTable t{};
  t.chunk = chunkOf(c, GRADS);
  int64_t parts = 0;
  uint32_t blocks = 0;
  const int count = countIn(c, GRADS);
  for (int i = 0; i < count; i++) {
    const auto& grad = in(c, GRADS, i);
    const int64_t n = numel(grad);
    if (n) {
      const int k = t.count++;
      t.g[k] = grad.data;
      t.n[k] = n;
      t.first[k] = blocks;
      t.dtype[k] = uint8_t(grad.dtype);
      blocks += uint32_t(ceilDiv(n, t.chunk));
    }
    if (t.count && (t.count == kNormTensors || i + 1 == count)) {
      const int32_t status = launch(c, gradNormKernel, dim3(blocks), dim3(256), 0, t, partial + parts);
      if (status != MM_OK) return status;
      parts += blocks;
      t.count = 0;
      blocks = 0;
    }
  }
  return launch(c, gradNormFinishKernel, dim3(1), dim3(1024), 0, partial, parts, attrs<Attrs>(c).maxNorm, data<float>(out(c, NORM)),
      data<float>(out(c, SCALE)));
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(optimizer,
    {"adamW", "multi-tensor", nullptr, nullptr, adamW},
    {"gradNorm", "multi-tensor", nullptr, gradNormWorkspace, gradNorm})
