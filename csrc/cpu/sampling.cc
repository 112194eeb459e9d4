// argmax and sample. The limits of sample are thresholds found by radix selection: logits become integers of the same
// order, and four histograms of 8 bits (of counts for topK, of probability for topP) walk down to the last one kept; so
// nothing is sorted and a row costs a few passes over V. Equal values at a threshold are kept from the first index on.
#include "ops/sampling.h"

#include "cpu/kernel.h"

namespace mm::cpu::MM_ISA {
namespace {

// Offset of row i of a view whose last axis is dense.
int64_t rowOffset(const MMTensorView& v, int64_t i) {
  int64_t offset = 0;
  for (int d = v.ndim - 2; d >= 0; d--) {
    offset += i % v.shape[d] * v.stride[d];
    i /= v.shape[d];
  }
  return offset;
}

template <class T>
int32_t argmaxRow(const T* x, int64_t n) {
  vf best = splat(-__builtin_inff());
  const vi lane = laneIndex();
  vi where{}, found{};
  int64_t j = 0;
  for (; j + VL <= n; j += VL) {
    const vf v = load(x + j);
    const vi better = (v > best) | ((v == v) & ~found);
    best = select(better, v, best);
    where = better ? lane + int32_t(j) : where;
    found |= better;
  }
  float top = -__builtin_inff();
  int32_t index = -1;
  for (int i = 0; i < VL; i++)
    if (found[i] && (index < 0 || best[i] > top || (best[i] == top && where[i] < index))) {
      top = best[i];
      index = where[i];
    }
  for (; j < n; j++)
    if (toF32(x[j]) > top || (index < 0 && toF32(x[j]) == toF32(x[j]))) {
      top = toF32(x[j]);
      index = int32_t(j);
    }
  return index < 0 ? 0 : index;
}

int32_t argmax(const MMCall* c) {
  using namespace ops::argmax;
  const auto& x = in(c, X);
  const int64_t n = lastDim(x);
  dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(numel(x) / n, 1 + 65536 / n, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) data<int32_t>(out(c, INDEX))[i] = argmaxRow(data<T>(x) + rowOffset(x, i), n);
    });
  });
  return MM_OK;
}

// Integers in the order of the floats; NaN becomes the lowest.
uint32_t orderKey(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if (x != x) return 0;
  return u >> 31 ? ~u : u | 0x80000000u;
}

// Tokens above `key`, and of those equal to it the first `ties`.
struct Threshold {
  uint32_t key = 0;
  int64_t ties = INT64_MAX;
};

// Runs f(i) over the kept tokens in the order of their index, until it returns true.
template <class F>
void forKept(const uint32_t* keys, int64_t n, Threshold t, F&& f) {
  for (int64_t i = 0; i < n; i++) {
    if (keys[i] < t.key || (keys[i] == t.key && t.ties-- <= 0)) continue;
    if (f(i)) return;
  }
}

// The threshold at which the amounts of the tokens kept by `within`, from the largest key down, reach `goal`: amount(i)
// is 1 (topK) or the probability mass (topP); equal keys have equal amounts.
template <class A>
Threshold keepUntil(const uint32_t* keys, int64_t n, const Threshold& within, double goal, A&& amount) {
  uint32_t prefix = 0;
  double above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    double bins[256] = {};
    forKept(keys, n, within, [&](int64_t i) {
      if (shift == 24 || keys[i] >> (shift + 8) == prefix >> (shift + 8)) bins[keys[i] >> shift & 255] += amount(i);
      return false;
    });
    int bin = 255, lowest = 255;
    for (; bin >= 0; bin--) {
      if (bins[bin] == 0) continue;
      lowest = bin;
      if (above + bins[bin] >= goal) break;
      above += bins[bin];
    }
    if (bin < 0) {  // rounding left the goal above the whole: keep everything of the lowest bin
      bin = lowest;
      above -= bins[lowest];
    }
    prefix |= uint32_t(bin) << shift;
  }
  double unit = 0;
  forKept(keys, n, within, [&](int64_t i) { return keys[i] == prefix && (unit = amount(i), true); });
  const double needed = unit > 0 ? (goal - above) / unit : 1;
  const int64_t ties = int64_t(needed) + (double(int64_t(needed)) < needed);
  return {prefix, ties > 1 ? ties : 1};
}

uint64_t sampleWorkspace(const MMCall* c) {
  const int64_t n = lastDim(in(c, ops::sample::LOGITS));
  return attrs<ops::sample::Attrs>(c).temperature > 0 ? uint64_t(workerCount()) * n * (sizeof(uint32_t) + sizeof(float)) : 0;
}

template <class T>
int32_t sampleRow(const T* logits, int64_t n, const ops::sample::Attrs& a, int64_t row, uint32_t* keys, float* mass) {
  const int32_t best = argmaxRow(logits, n);
  const float top = toF32(logits[best]), scale = float(1. / a.temperature);
  if (!(top < __builtin_inff() && top > -__builtin_inff())) return best;  // nothing to weigh
  for (int64_t j = 0; j < n; j += VL) {
    const vf x = loadUpTo(logits + j, n - j), e = exp((x - top) * scale);
    storeUpTo(mass + j, select(x == x, e, vf{}), n - j);
  }
  Threshold kept;
  const bool limitK = a.topK > 0 && a.topK < n, limitP = a.topP < 1;
  if (limitK || limitP)
    for (int64_t j = 0; j < n; j++) keys[j] = orderKey(toF32(logits[j]));
  else std::memset(keys, 0, size_t(n) * sizeof(uint32_t));
  if (limitK) kept = keepUntil(keys, n, kept, double(a.topK), [](int64_t) { return 1.; });
  double total = 0;
  const auto addUp = [&](int64_t i) {
    total += mass[i];
    return false;
  };
  forKept(keys, n, kept, addUp);
  if (limitP) {
    kept = keepUntil(keys, n, kept, a.topP * total, [&](int64_t i) { return double(mass[i]); });
    total = 0;
    forKept(keys, n, kept, addUp);
  }
  const double goal = double(ops::sample::philox(uint64_t(a.seed), uint64_t(a.offset), uint32_t(row)) >> 8) * 0x1p-24 * total;
  double cumulated = 0;
  int32_t token = best;
  forKept(keys, n, kept, [&](int64_t i) {
    if (mass[i] > 0) token = int32_t(i);
    cumulated += mass[i];
    return cumulated > goal;
  });
  return token;
}

int32_t sample(const MMCall* c) {
  using namespace ops::sample;
  const auto& logits = in(c, LOGITS);
  const auto& a = attrs<Attrs>(c);
  const int64_t n = lastDim(logits);
  uint32_t* keys = static_cast<uint32_t*>(c->workspace);
  float* mass = reinterpret_cast<float*>(keys + (a.temperature > 0 ? workerCount() * n : 0));
  dispatchFloat(logits.dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(logits.shape[0], 1 + 4096 / n, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; i++) {
        const T* row = data<T>(logits) + i * logits.stride[0];
        data<int32_t>(out(c, TOKEN))[i] = a.temperature > 0 ? sampleRow(row, n, a, i, keys + worker * n, mass + worker * n)
            : argmaxRow(row, n);
      }
    });
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(sampling, {"argmax", "rows", nullptr, nullptr, argmax}, {"sample", "rows", nullptr, sampleWorkspace, sample})
