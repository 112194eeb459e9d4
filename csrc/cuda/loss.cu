#include "cuda/loss.cuh"

#include "ops/loss.h"

namespace mm::cuda {
namespace {

struct WalkPlan {
  int lanes, threads;
  int64_t teams;

  WalkPlan(const MMCall* c, int64_t rows, int64_t n) : lanes(walkLanes(n, rows, deviceOf(c).multiprocessors)) {
    threads = lanes == 32 ? 128 : lanes;
    teams = threads / lanes;
  }
  // Blocks that stay for many rows, of which each gives a partial sum.
  int64_t staying(const MMCall* c, int64_t rows) const {
    const int64_t blocks = ceilDiv(rows, teams), most = int64_t(deviceOf(c).multiprocessors) * (2048 / threads);
    return blocks < most ? blocks : most;
  }
};

template <class T>
T* optionalIn(const MMCall* c, int slot) {
  return has(c, slot) ? data<T>(in(c, slot)) : nullptr;
}

int32_t finish(const MMCall* c, const double* partial, int64_t parts, double divisor, double factor, float* loss) {
  return launch(c, lossKernel, dim3(1), dim3(1024), 0, partial, parts, divisor, factor, loss);
}

// The rows of logits: an empty tensor has none, as the last axis is never empty.
int64_t logitRows(const MMTensorView& logits) { return numel(logits) / lastDim(logits); }

uint64_t rowsWorkspace(const MMCall* c) {  // crossEntropy and klDiv: logits come first
  const auto& logits = c->inputs[0];
  const int64_t rows = logitRows(logits);
  return uint64_t(WalkPlan(c, rows, lastDim(logits)).staying(c, rows)) * 2 * sizeof(double);
}

int32_t crossEntropy(const MMCall* c) {
  using namespace ops::cross_entropy;
  const auto& logits = in(c, LOGITS);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(logits), rows = logitRows(logits);
  const WalkPlan plan(c, rows, n);
  const int64_t blocks = plan.staying(c, rows);
  double* partial = static_cast<double*>(c->workspace);
  const int32_t status = dispatchFloat(logits.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, crossEntropyKernel<T>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(logits),
        data<const int32_t>(in(c, LABELS)), optionalIn<const float>(c, LOSS_WEIGHT), data<float>(out(c, PER_TOKEN)),
        data<float>(out(c, LSE)), partial, rows, n, a.ignoreIndex, a.labelSmoothing, plan.lanes);
  });
  return status != MM_OK ? status : finish(c, partial, blocks, 0, 1, data<float>(out(c, LOSS)));
}

uint64_t crossEntropyBackwardWorkspace(const MMCall*) { return sizeof(float); }

int32_t crossEntropyBackward(const MMCall* c) {
  using namespace ops::cross_entropy_bwd;
  const auto& logits = in(c, LOGITS);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(logits), rows = logitRows(logits);
  const WalkPlan plan(c, rows, n);
  const int32_t* labels = data<const int32_t>(in(c, LABELS));
  const float* weight = optionalIn<const float>(c, LOSS_WEIGHT);
  float* scale = has(c, DLOSS) ? static_cast<float*>(c->workspace) : nullptr;
  if (!rows) return MM_OK;
  if (scale) {
    const int32_t status = launch(c, crossEntropyScaleKernel, dim3(1), dim3(1024), 0, labels, weight, data<const float>(in(c, DLOSS)),
        scale, rows, a.ignoreIndex);
    if (status != MM_OK) return status;
  }
  return dispatchFloat(logits.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, crossEntropyBackwardKernel<T>, dim3(unsigned(ceilDiv(rows, plan.teams))), dim3(plan.threads), 0, data<const T>(logits),
        labels, weight, data<const float>(in(c, LSE)), scale, optionalIn<const float>(c, DPER_TOKEN), data<T>(out(c, DLOGITS)), rows, n,
        a.ignoreIndex, float(a.labelSmoothing), plan.lanes);
  });
}

double klDivisor(const MMTensorView& student, double divisor) {
  return divisor != 0 ? divisor : student.ndim > 1 ? double(student.shape[0]) : 1.;
}

int32_t klDiv(const MMCall* c) {
  using namespace ops::kl_div;
  const auto& student = in(c, STUDENT);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(student), rows = logitRows(student);
  const WalkPlan plan(c, rows, n);
  const int64_t blocks = plan.staying(c, rows);
  double* partial = static_cast<double*>(c->workspace);
  const int32_t status = dispatchFloat(student.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, klDivKernel<T>, dim3(unsigned(blocks)), dim3(plan.threads), 0, data<const T>(student), data<const T>(in(c, TEACHER)),
        optionalIn<const float>(c, MASK), data<float>(out(c, PER_POSITION)), data<float>(out(c, LSE_STUDENT)),
        data<float>(out(c, LSE_TEACHER)), partial, rows, n, float(1. / a.temperature), float(a.temperature * a.temperature), plan.lanes);
  });
  return status != MM_OK ? status : finish(c, partial, blocks, klDivisor(student, a.divisor), 1, data<float>(out(c, LOSS)));
}

int32_t klDivBackward(const MMCall* c) {
  using namespace ops::kl_div_bwd;
  const auto& student = in(c, STUDENT);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(student), rows = logitRows(student);
  const WalkPlan plan(c, rows, n);
  return dispatchFloat(student.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, klDivBackwardKernel<T>, dim3(unsigned(ceilDiv(rows, plan.teams))), dim3(plan.threads), 0, data<const T>(student),
        data<const T>(in(c, TEACHER)), optionalIn<const float>(c, MASK), data<const float>(in(c, LSE_STUDENT)),
        data<const float>(in(c, LSE_TEACHER)), optionalIn<const float>(c, DLOSS), optionalIn<const float>(c, DPER_POSITION),
        data<T>(out(c, DSTUDENT)), rows, n, float(a.temperature), float(1. / a.temperature), klDivisor(student, a.divisor), plan.lanes);
  });
}

int64_t mseBlocks(const MMCall* c, int64_t n) {
  const int64_t blocks = ceilDiv(n, 256 * 16), most = int64_t(deviceOf(c).multiprocessors) * 8;
  return blocks < most ? blocks : most;
}
uint64_t mseWorkspace(const MMCall* c) { return uint64_t(mseBlocks(c, numel(in(c, ops::mse::PRED)))) * 2 * sizeof(double); }

int32_t mse(const MMCall* c) {
  using namespace ops::mse;
  const auto& pred = in(c, PRED);
  const int64_t n = numel(pred), blocks = mseBlocks(c, n);
  double* partial = static_cast<double*>(c->workspace);
  const int32_t status = dispatchFloat(pred.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, mseKernel<T>, dim3(unsigned(blocks)), dim3(256), 0, data<const T>(pred), data<const T>(in(c, TARGET)), partial, n);
  });
  return status != MM_OK ? status : finish(c, partial, blocks, double(n), attrs<Attrs>(c).factor, data<float>(out(c, LOSS)));
}

int32_t mseBackward(const MMCall* c) {
  using namespace ops::mse_bwd;
  const auto& pred = in(c, PRED);
  const int64_t n = numel(pred);
  if (!hasOut(c, DPRED) && !hasOut(c, DTARGET)) return MM_OK;
  return dispatchFloat(pred.dtype, [&](auto t) {
    using T = decltype(t);
    return launch(c, mseBackwardKernel<T>, dim3(unsigned(mseBlocks(c, n))), dim3(256), 0, data<const T>(pred), data<const T>(in(c, TARGET)),
        data<const float>(in(c, DLOSS)), hasOut(c, DPRED) ? data<T>(out(c, DPRED)) : nullptr,
        hasOut(c, DTARGET) ? data<T>(out(c, DTARGET)) : nullptr, n, 2. * attrs<Attrs>(c).factor / double(n));
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(loss,
    {"crossEntropy", "rows", nullptr, rowsWorkspace, crossEntropy},
    {"crossEntropyBackward", "rows", nullptr, crossEntropyBackwardWorkspace, crossEntropyBackward},
    {"klDiv", "rows", nullptr, rowsWorkspace, klDiv},
    {"klDivBackward", "rows", nullptr, nullptr, klDivBackward},
    {"mse", "blocks", nullptr, mseWorkspace, mse},
    {"mseBackward", "blocks", nullptr, nullptr, mseBackward})
