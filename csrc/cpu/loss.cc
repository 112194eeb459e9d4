// crossEntropy, klDiv, mse and their gradients.
//
// A row of logits is read once: blocks of 1024 elements, which stay in L1, first raise the running maximum (one a
// lane, so that nothing is reduced across lanes before the end) and then add their exponentials; block sums keep the
// rounding error of long rows down. The gradient is one more pass with the saved log-sum-exp.
#include "ops/loss.h"

#include <cmath>

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kRowBlock = 1024;
constexpr float kLowest = -3.40282347e38f;  // below any finite logit, and its difference to itself is 0

int64_t rowGrain(int64_t n) { return 1 + 8192 / (n + 1); }

// Running sum of exp((x - max) * scale), a lane for itself.
struct OnlineSum {
  vf top = splat(kLowest), total{};

  // Raises the maximum to `block`; returns the factor that older sums take.
  MM_INLINE vf raise(vf block, float scale) {
    const vf higher = vmax(block, top), factor = exp((top - higher) * scale);
    top = higher;
    total = total * factor;
    return factor;
  }
  // Over all lanes: log(sum exp(x * scale)); `lane` receives the factors that bring lane sums to the common maximum. In
  // double, as losses are differences of such logarithms and logits.
  double finish(float scale, vf* lane, float* sumOut) const {
    const float m = maximum(top);
    *lane = exp((top - m) * scale);
    *sumOut = sum(total * *lane);
    return double(m) * double(scale) + std::log(double(*sumOut));
  }
};

template <class T>
MM_INLINE vf loadOrLowest(const T* p, int64_t n) {
  if (n >= VL) return load(p);
  float lanes[VL];
  for (int i = 0; i < VL; i++) lanes[i] = i < n ? toF32(p[i]) : -__builtin_inff();
  return load(lanes);
}

template <class T>
double logSumExp(const T* x, int64_t n) {
  OnlineSum s;
  for (int64_t first = 0; first < n; first += kRowBlock) {
    const int64_t end = first + kRowBlock < n ? first + kRowBlock : n;
    vf top = s.top;
    for (int64_t j = first; j < end; j += VL) top = vmax(loadOrLowest(x + j, end - j), top);
    s.raise(top, 1.f);
    vf acc{};
    for (int64_t j = first; j < end; j += VL) acc += exp(loadOrLowest(x + j, end - j) - top);
    s.total += acc;
  }
  vf lane;
  float total;
  return s.finish(1.f, &lane, &total);
}

template <class T>
double rowSum(const T* x, int64_t n) {
  double total = 0;
  for (int64_t first = 0; first < n; first += kRowBlock) {
    const int64_t end = first + kRowBlock < n ? first + kRowBlock : n;
    vf acc{};
    for (int64_t j = first; j < end; j += VL) acc += loadUpTo(x + j, end - j);
    total += sum(acc);
  }
  return total;
}

// ---- cross entropy

int32_t checkLabels(const MMCall* c, const MMTensorView& labels, int64_t ignore, int64_t classes) {
  const int64_t rows = numel(labels);
  for (int64_t i = 0; i < rows; i++) {
    const int32_t label = data<int32_t>(labels)[i];
    if (label != ignore && (label < 0 || label >= classes))
      return fail(c, "label %lld is %d; expected a class in [0, %lld) or ignoreIndex %lld", static_cast<long long>(i), label,
                  static_cast<long long>(classes), static_cast<long long>(ignore));
  }
  return MM_OK;
}

double crossEntropyDivisor(const MMTensorView& labels, const float* weight, int64_t ignore) {
  const int64_t rows = numel(labels);
  double total = 0;
  for (int64_t i = 0; i < rows; i++) total += weight ? weight[i] : data<int32_t>(labels)[i] != ignore;
  return total;
}

int32_t crossEntropy(const MMCall* c) {
  using namespace ops::cross_entropy;
  const auto &logits = in(c, LOGITS), &labels = in(c, LABELS);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(logits), rows = numel(labels);
  if (const int32_t status = checkLabels(c, labels, a.ignoreIndex, n)) return status;
  const float* weight = has(c, LOSS_WEIGHT) ? data<float>(in(c, LOSS_WEIGHT)) : nullptr;
  float *perToken = data<float>(out(c, PER_TOKEN)), *lse = data<float>(out(c, LSE));
  dispatchFloat(logits.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(rows, rowGrain(n), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        const T* x = data<T>(logits) + i * n;
        const int32_t label = data<int32_t>(labels)[i];
        const double total = logSumExp(x, n);
        lse[i] = float(total);
        if (label == a.ignoreIndex) {
          perToken[i] = 0.f;
          continue;
        }
        double target = toF32(x[label]);
        if (a.labelSmoothing > 0) target = (1. - a.labelSmoothing) * target + a.labelSmoothing * rowSum(x, n) / double(n);
        perToken[i] = float(total - target);
      }
    });
  });
  double total = 0;
  for (int64_t i = 0; i < rows; i++) total += double(perToken[i]) * (weight ? weight[i] : 1.f);
  const double divisor = crossEntropyDivisor(labels, weight, a.ignoreIndex);
  *data<float>(out(c, LOSS)) = divisor != 0 ? float(total / divisor) : 0.f;
  return MM_OK;
}

int32_t crossEntropyBackward(const MMCall* c) {
  using namespace ops::cross_entropy_bwd;
  const auto &logits = in(c, LOGITS), &labels = in(c, LABELS), &dx = out(c, DLOGITS);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(logits), rows = numel(labels);
  if (const int32_t status = checkLabels(c, labels, a.ignoreIndex, n)) return status;
  const float *weight = has(c, LOSS_WEIGHT) ? data<float>(in(c, LOSS_WEIGHT)) : nullptr, *lse = data<float>(in(c, LSE));
  const float* dPerToken = has(c, DPER_TOKEN) ? data<float>(in(c, DPER_TOKEN)) : nullptr;
  const double divisor = crossEntropyDivisor(labels, weight, a.ignoreIndex);
  const float dLoss = has(c, DLOSS) && divisor != 0 ? float(double(*data<float>(in(c, DLOSS))) / divisor) : 0.f;
  const float smoothing = float(a.labelSmoothing), uniform = smoothing / float(n);
  dispatchFloat(logits.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(rows, rowGrain(n), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        const T* x = data<T>(logits) + i * n;
        T* to = data<T>(dx) + i * n;
        const int32_t label = data<int32_t>(labels)[i];
        if (label == a.ignoreIndex) {
          std::memset(to, 0, size_t(n) * sizeof(T));
          continue;
        }
        const float g = dLoss * (weight ? weight[i] : 1.f) + (dPerToken ? dPerToken[i] : 0.f);
        for (int64_t j = 0; j < n; j += VL) storeUpTo(to + j, (exp(loadUpTo(x + j, n - j) - lse[i]) - uniform) * g, n - j);
        to[label] = fromF32<T>((exp(toF32(x[label]) - lse[i]) - uniform - (1.f - smoothing)) * g);
      }
    });
  });
  return MM_OK;
}

// ---- KL divergence

// Returns KL(p_t || p_s) = E_t[t - s] - lse_t + lse_s of the logits times 1/T.
template <class T>
float klRow(const T* student, const T* teacher, int64_t n, float scale, float* lseStudent, float* lseTeacher) {
  OnlineSum s, t;
  vf cross{};  // sum of exp(t - max) (t - s)
  for (int64_t first = 0; first < n; first += kRowBlock) {
    const int64_t end = first + kRowBlock < n ? first + kRowBlock : n;
    vf topS = s.top, topT = t.top;
    for (int64_t j = first; j < end; j += VL) {
      topS = vmax(loadOrLowest(student + j, end - j), topS);
      topT = vmax(loadOrLowest(teacher + j, end - j), topT);
    }
    s.raise(topS, scale);
    cross = cross * t.raise(topT, scale);
    vf accS{}, accT{}, accX{};
    for (int64_t j = first; j < end; j += VL) {
      const vf vs = loadOrLowest(student + j, end - j), vt = loadOrLowest(teacher + j, end - j), e = exp((vt - topT) * scale);
      accS += exp((vs - topS) * scale);
      accT += e;
      accX += select(e > splat(0.f), e * (vt - vs), vf{});  // 0 * inf where a logit is masked out with -inf
    }
    s.total += accS;
    t.total += accT;
    cross += accX;
  }
  vf lane;
  float total;
  const double logS = s.finish(scale, &lane, &total), logT = t.finish(scale, &lane, &total);
  *lseStudent = float(logS);
  *lseTeacher = float(logT);
  return float(double(sum(cross * lane)) / double(total) * double(scale) - logT + logS);
}

double klDivisor(const MMTensorView& student, double divisor) {
  return divisor != 0 ? divisor : student.ndim > 1 ? double(student.shape[0]) : 1.;
}

int32_t klDiv(const MMCall* c) {
  using namespace ops::kl_div;
  const auto &student = in(c, STUDENT), &teacher = in(c, TEACHER);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(student), rows = numel(student) / n;
  const float* mask = has(c, MASK) ? data<float>(in(c, MASK)) : nullptr;
  float *perPosition = data<float>(out(c, PER_POSITION)), *lseS = data<float>(out(c, LSE_STUDENT)),
      *lseT = data<float>(out(c, LSE_TEACHER));
  const float scale = float(1. / a.temperature), square = float(a.temperature * a.temperature);
  dispatchFloat(student.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(rows, rowGrain(n), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++)
        perPosition[i] = square * klRow(data<T>(student) + i * n, data<T>(teacher) + i * n, n, scale, lseS + i, lseT + i);
    });
  });
  double total = 0;
  for (int64_t i = 0; i < rows; i++) total += double(perPosition[i]) * (mask ? mask[i] : 1.f);
  *data<float>(out(c, LOSS)) = rows ? float(total / klDivisor(student, a.divisor)) : 0.f;
  return MM_OK;
}

int32_t klDivBackward(const MMCall* c) {
  using namespace ops::kl_div_bwd;
  const auto &student = in(c, STUDENT), &teacher = in(c, TEACHER), &dx = out(c, DSTUDENT);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(student), rows = numel(student) / n;
  if (!rows) return MM_OK;
  const float* mask = has(c, MASK) ? data<float>(in(c, MASK)) : nullptr;
  const float* dPerPosition = has(c, DPER_POSITION) ? data<float>(in(c, DPER_POSITION)) : nullptr;
  const float *lseS = data<float>(in(c, LSE_STUDENT)), *lseT = data<float>(in(c, LSE_TEACHER));
  const float dLoss = has(c, DLOSS) ? float(*data<float>(in(c, DLOSS)) / klDivisor(student, a.divisor)) : 0.f;
  const float scale = float(1. / a.temperature);
  dispatchFloat(student.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(rows, rowGrain(n), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) {
        const T *s = data<T>(student) + i * n, *p = data<T>(teacher) + i * n;
        const float g = (dLoss * (mask ? mask[i] : 1.f) + (dPerPosition ? dPerPosition[i] : 0.f)) * float(a.temperature);
        const float ls = lseS[i], lt = lseT[i];
        for (int64_t j = 0; j < n; j += VL)
          storeUpTo(data<T>(dx) + i * n + j,
                    (exp(loadUpTo(s + j, n - j) * scale - ls) - exp(loadUpTo(p + j, n - j) * scale - lt)) * g, n - j);
      }
    });
  });
  return MM_OK;
}

// ---- mean squared error

constexpr int64_t kMseBlock = 16384;

uint64_t mseWorkspace(const MMCall* c) {
  return uint64_t((numel(in(c, ops::mse::PRED)) + kMseBlock - 1) / kMseBlock) * sizeof(float);
}

int32_t mse(const MMCall* c) {
  using namespace ops::mse;
  const auto &pred = in(c, PRED), &target = in(c, TARGET);
  const int64_t n = numel(pred), blocks = (n + kMseBlock - 1) / kMseBlock;
  float* partial = static_cast<float*>(c->workspace);
  dispatchFloat(pred.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; b++) {
        const int64_t last = (b + 1) * kMseBlock < n ? (b + 1) * kMseBlock : n;
        const T *p = data<T>(pred), *q = data<T>(target);
        vf acc[4] = {};
        int64_t j = b * kMseBlock;
        for (; j + 4 * VL <= last; j += 4 * VL)
#pragma GCC unroll 4
          for (int u = 0; u < 4; u++) {
            const vf d = load(p + j + u * VL) - load(q + j + u * VL);
            acc[u] = fma(d, d, acc[u]);
          }
        for (; j < last; j += VL) {
          const vf d = loadUpTo(p + j, last - j) - loadUpTo(q + j, last - j);
          acc[0] = fma(d, d, acc[0]);
        }
        partial[b] = sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
      }
    });
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; b++) total += partial[b];
  *data<float>(out(c, LOSS)) = n ? float(total / double(n) * attrs<Attrs>(c).factor) : 0.f;
  return MM_OK;
}

int32_t mseBackward(const MMCall* c) {
  using namespace ops::mse_bwd;
  const auto &pred = in(c, PRED), &target = in(c, TARGET);
  const int64_t n = numel(pred), blocks = (n + kMseBlock - 1) / kMseBlock;
  if (!n) return MM_OK;
  const float g = float(2. * attrs<Attrs>(c).factor * *data<float>(in(c, DLOSS)) / double(n));
  dispatchFloat(pred.dtype, [&](auto t) {
    using T = decltype(t);
    T* dp = hasOut(c, DPRED) ? data<T>(out(c, DPRED)) : nullptr;
    T* dt = hasOut(c, DTARGET) ? data<T>(out(c, DTARGET)) : nullptr;
    parallelFor(blocks, 1, [&](int64_t begin, int64_t end, int) {
      const int64_t last = end * kMseBlock < n ? end * kMseBlock : n;
      for (int64_t j = begin * kMseBlock; j < last; j += VL) {
        const vf d = (loadUpTo(data<T>(pred) + j, last - j) - loadUpTo(data<T>(target) + j, last - j)) * g;
        if (dp) storeUpTo(dp + j, d, last - j);
        if (dt) storeUpTo(dt + j, -d, last - j);
      }
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(loss, {"crossEntropy", "rows", nullptr, nullptr, crossEntropy},
               {"crossEntropyBackward", "rows", nullptr, nullptr, crossEntropyBackward},
               {"klDiv", "rows", nullptr, nullptr, klDiv},
               {"klDivBackward", "rows", nullptr, nullptr, klDivBackward}, {"mse", "blocks", nullptr, mseWorkspace, mse},
               {"mseBackward", "blocks", nullptr, nullptr, mseBackward})
