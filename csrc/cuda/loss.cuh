// crossEntropy, klDiv, mse and their gradients; logits (rows, n) dense, n often odd and large (92,553), so rows begin anywhere.
//
// The log-sum-exps come out of one pass: each lane keeps a running maximum and the sum of exp(x - maximum), raised vector by
// vector. A warp takes a row of up to 1024 logits, a block longer ones; blocks stay for many rows and add their losses in
// double, and one block adds the partial sums in order. The gradients are one more pass with the saved log-sum-exps.
// A label outside of [0, n) that is not ignoreIndex, which the CPU refuses, makes perToken, the loss and its gradient row NaN.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/common/rows.cuh"

namespace mm::cuda {

constexpr float kLowestLogit = -3.40282347e38f;  // below any finite logit, and its difference to itself is 0

// Sum of exp((x - top) scale).
struct OnlineSum {
  float top = kLowestLogit, total = 0.f;

  // Raises the maximum to that of v; returns the factor that older sums take.
  template <class T, int N>
  __device__ __forceinline__ float raise(const float (&v)[N], float scale) {
    float high = v[0];
#pragma unroll
    for (int i = 1; i < N; i++) high = fmaxf(high, v[i]);
    if (!(high > top)) return 1.f;
    const float factor = expFor<T>((top - high) * scale);
    total *= factor;
    top = high;
    return factor;
  }
};

// A block's partial sums of loss and divisor: what the leaders of its teams have, in order. `shared`: 64 doubles.
__device__ __forceinline__ void storeLossSums(double loss, double divisor, const Team& team, double* shared, double* to) {
  if (team.lane == 0) {
    shared[2 * team.index] = loss;
    shared[2 * team.index + 1] = divisor;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 1; t < team.count; t++) {
    loss += shared[2 * t];
    divisor += shared[2 * t + 1];
  }
  to[0] = loss;
  to[1] = divisor;
}

// One block of 1024. partial (parts, 2): loss and divisor; `divisor` other than 0 replaces the sum of the latter.
__global__ void __launch_bounds__(1024) lossKernel(const double* __restrict__ partial, int64_t parts, double divisor, double factor,
    float* __restrict__ loss) {
  __shared__ double scratch[32];
  double sum = 0, by = 0;
  for (int64_t i = threadIdx.x; i < parts; i += blockDim.x) {
    sum += partial[2 * i];
    by += partial[2 * i + 1];
  }
  sum = blockSum(sum, scratch);
  by = blockSum(by, scratch);
  if (divisor != 0) by = divisor;
  if (threadIdx.x == 0) *loss = by != 0 ? float(sum / by * factor) : 0.f;
}

// ---- cross entropy

// partial (blocks, 2)
template <class T>
__global__ void __launch_bounds__(1024) crossEntropyKernel(const T* __restrict__ logits, const int32_t* __restrict__ labels,
    const float* __restrict__ lossWeight, float* __restrict__ perToken, float* __restrict__ lse, double* __restrict__ partial, int64_t rows,
    int64_t n, int64_t ignoreIndex, double smoothing, int lanes) {
  __shared__ float scratch[64];
  __shared__ double sums[64];
  const Team team(lanes);
  double loss = 0, divisor = 0;
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index;
    const T* x = logits + row * n;
    OnlineSum s;
    float plain = 0.f;
    walkRows<4, 1, T>({x}, nullptr, row < rows ? n : 0, team.lane, lanes, [&](int64_t, auto& v) {
      s.raise<T>(v[0], 1.f);
      float sum = 0.f, all = 0.f;
      for (const float a : v[0]) {
        sum += expFor<T>(a - s.top);
        all += a;
      }
      s.total += sum;
      plain += all;
    });
    float top[1] = {s.top};
    teamReduce<Max>(top, lanes, scratch);
    float both[2] = {s.total * expFor<T>(s.top - top[0]), plain};
    teamReduce(both, lanes, scratch);
    if (team.lane != 0 || row >= rows) continue;
    const double total = double(top[0]) + log(double(both[0]));
    const int32_t label = labels[row];
    float token = 0.f;
    if (label != ignoreIndex) {
      if (label >= 0 && label < n) {
        double target = toFloat(x[label]);
        if (smoothing > 0) target = (1. - smoothing) * target + smoothing * double(both[1]) / double(n);
        token = float(total - target);
      } else {
        token = NAN;
      }
    }
    lse[row] = float(total);
    perToken[row] = token;
    loss += double(token) * (lossWeight ? lossWeight[row] : 1.f);
    divisor += lossWeight ? lossWeight[row] : float(label != ignoreIndex);
  }
  storeLossSums(loss, divisor, team, sums, partial + 2 * int64_t(blockIdx.x));
}

// One block of 1024: the upstream gradient of every position's loss, dLoss / divisor.
__global__ void __launch_bounds__(1024) crossEntropyScaleKernel(const int32_t* __restrict__ labels, const float* __restrict__ lossWeight,
    const float* __restrict__ dLoss, float* __restrict__ scale, int64_t rows, int64_t ignoreIndex) {
  __shared__ double scratch[32];
  double divisor = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) divisor += lossWeight ? lossWeight[i] : float(labels[i] != ignoreIndex);
  divisor = blockSum(divisor, scratch);
  if (threadIdx.x == 0) *scale = divisor != 0 ? float(double(*dLoss) / divisor) : 0.f;
}

template <class T>
__device__ __forceinline__ void zeroRow(T* to, int64_t n, int lane, int lanes) {
  constexpr int V = kVector<T>;
  int64_t head = (16 - uint32_t(reinterpret_cast<uintptr_t>(to)) % 16) % 16 / sizeof(T);
  if (head > n) head = n;
  const int64_t vectors = (n - head) / V;
  for (int64_t j = lane; j < head; j += lanes) to[j] = fromFloat<T>(0.f);
  for (int64_t i = lane; i < vectors; i += lanes) *reinterpret_cast<uint4*>(to + head + i * V) = make_uint4(0, 0, 0, 0);
  for (int64_t j = head + vectors * V + lane; j < n; j += lanes) to[j] = fromFloat<T>(0.f);
}

// scale: from crossEntropyScaleKernel, or null for 0.
template <class T>
__global__ void __launch_bounds__(1024) crossEntropyBackwardKernel(const T* __restrict__ logits, const int32_t* __restrict__ labels,
    const float* __restrict__ lossWeight, const float* __restrict__ lse, const float* __restrict__ scale,
    const float* __restrict__ dPerToken, T* __restrict__ dx, int64_t rows, int64_t n, int64_t ignoreIndex, float smoothing, int lanes) {
  const Team team(lanes);
  const float uniform = smoothing / float(n), common = scale ? *scale : 0.f;
  for (int64_t row = int64_t(blockIdx.x) * team.count + team.index; row < rows; row += team.all()) {
    const T* x = logits + row * n;
    T* to = dx + row * n;
    const int64_t label = labels[row];
    if (label == ignoreIndex) {
      zeroRow(to, n, team.lane, lanes);
      continue;
    }
    float g = common * (lossWeight ? lossWeight[row] : 1.f) + (dPerToken ? dPerToken[row] : 0.f);
    if (label < 0 || label >= n) g = NAN;
    const float shift = lse[row], hit = 1.f - smoothing;
    walkRows<4, 1, T>({x}, to, n, team.lane, lanes, [&](int64_t j, auto& v) {
      constexpr int N = sizeof(v[0]) / sizeof(float);
      float y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = expFor<T>(v[0][i] - shift) - uniform;
      if (label - j >= 0 && label - j < N)
#pragma unroll
        for (int i = 0; i < N; i++)
          if (label - j == i) y[i] -= hit;
#pragma unroll
      for (int i = 0; i < N; i++) y[i] *= g;
      if constexpr (N == 1) to[j] = fromFloat<T>(y[0]);
      else storeVector(to + j, y);
    });
  }
}

// ---- KL divergence: E_t[t - s] - lse_t + lse_s of the logits times scale = 1 / T

// partial (blocks, 2)
template <class T>
__global__ void __launch_bounds__(1024) klDivKernel(const T* __restrict__ student, const T* __restrict__ teacher,
    const float* __restrict__ mask, float* __restrict__ perPosition, float* __restrict__ lseStudent, float* __restrict__ lseTeacher,
    double* __restrict__ partial, int64_t rows, int64_t n, float scale, float square, int lanes) {
  __shared__ float scratch[96];
  __shared__ double sums[64];
  const Team team(lanes);
  double loss = 0;
  for (int64_t first = int64_t(blockIdx.x) * team.count; first < rows; first += team.all()) {
    const int64_t row = first + team.index;
    OnlineSum s, t;
    float cross = 0.f;  // sum of exp((t - top) scale) (t - s)
    walkRows<2, 2, T>({student + row * n, teacher + row * n}, nullptr, row < rows ? n : 0, team.lane, lanes, [&](int64_t, auto& v) {
      constexpr int N = sizeof(v[0]) / sizeof(float);
      s.raise<T>(v[0], scale);
      cross *= t.raise<T>(v[1], scale);
      float sum[3] = {};
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float e = expFor<T>((v[1][i] - t.top) * scale);
        sum[0] += expFor<T>((v[0][i] - s.top) * scale);
        sum[1] += e;
        if (e != 0.f) sum[2] = fmaf(e, v[1][i] - v[0][i], sum[2]);  // not 0 * inf where a logit is masked out with -inf
      }
      s.total += sum[0];
      t.total += sum[1];
      cross += sum[2];
    });
    float top[2] = {s.top, t.top};
    teamReduce<Max>(top, lanes, scratch);
    const float own = expFor<T>((t.top - top[1]) * scale);
    float sum[3] = {s.total * expFor<T>((s.top - top[0]) * scale), t.total * own, cross * own};
    teamReduce(sum, lanes, scratch);
    if (team.lane != 0 || row >= rows) continue;
    const double logS = double(top[0]) * double(scale) + log(double(sum[0])), logT = double(top[1]) * double(scale) + log(double(sum[1]));
    const float kl = square * float(double(sum[2]) / double(sum[1]) * double(scale) - logT + logS);
    lseStudent[row] = float(logS);
    lseTeacher[row] = float(logT);
    perPosition[row] = kl;
    loss += double(kl) * (mask ? mask[row] : 1.f);
  }
  storeLossSums(loss, 0, team, sums, partial + 2 * int64_t(blockIdx.x));
}

// dLoss may be null; divisor is that of the loss.
template <class T>
__global__ void __launch_bounds__(1024) klDivBackwardKernel(const T* __restrict__ student, const T* __restrict__ teacher,
    const float* __restrict__ mask, const float* __restrict__ lseStudent, const float* __restrict__ lseTeacher,
    const float* __restrict__ dLoss, const float* __restrict__ dPerPosition, T* __restrict__ dx, int64_t rows, int64_t n, float temperature,
    float scale, double divisor, int lanes) {
  const Team team(lanes);
  const float common = dLoss ? float(*dLoss / divisor) : 0.f;
  for (int64_t row = int64_t(blockIdx.x) * team.count + team.index; row < rows; row += team.all()) {
    T* to = dx + row * n;
    const float g = (common * (mask ? mask[row] : 1.f) + (dPerPosition ? dPerPosition[row] : 0.f)) * temperature;
    const float ls = lseStudent[row], lt = lseTeacher[row];
    walkRows<2, 2, T>({student + row * n, teacher + row * n}, to, n, team.lane, lanes, [&](int64_t j, auto& v) {
      constexpr int N = sizeof(v[0]) / sizeof(float);
      float y[N];
#pragma unroll
      for (int i = 0; i < N; i++) y[i] = (expFor<T>(v[0][i] * scale - ls) - expFor<T>(v[1][i] * scale - lt)) * g;
      if constexpr (N == 1) to[j] = fromFloat<T>(y[0]);
      else storeVector(to + j, y);
    });
  }
}

// ---- mean squared error: factor mean((p - q)^2)

// partial (blocks, 2): the sum of squares in the first. Unaligned operands are walked element by element.
template <class T>
__global__ void __launch_bounds__(256) mseKernel(const T* __restrict__ p, const T* __restrict__ q, double* __restrict__ partial,
    int64_t n) {
  __shared__ double scratch[32];
  float sum = 0.f;
  const int lanes = int(gridDim.x * blockDim.x);
  walkRows<2, 2, T>({p, q}, nullptr, n, int(blockIdx.x * blockDim.x + threadIdx.x), lanes, [&](int64_t, auto& v) {
    constexpr int N = sizeof(v[0]) / sizeof(float);
    float part = 0.f;
#pragma unroll
    for (int i = 0; i < N; i++) part = fmaf(v[0][i] - v[1][i], v[0][i] - v[1][i], part);
    sum += part;
  });
  const double total = blockSum(double(sum), scratch);
  if (threadIdx.x == 0) partial[2 * int64_t(blockIdx.x)] = total, partial[2 * int64_t(blockIdx.x) + 1] = 0;
}

// factor: 2 factor / n. dp and dq may be null, and lie alike where both are there and p, q are to be read as vectors.
template <class T>
__global__ void __launch_bounds__(256) mseBackwardKernel(const T* __restrict__ p, const T* __restrict__ q, const float* __restrict__ dLoss,
    T* dp, T* dq, int64_t n, double factor) {
  const float g = float(factor * *dLoss);
  walkRows<2, 2, T>({p, q}, dp ? dp : dq, n, int(blockIdx.x * blockDim.x + threadIdx.x), int(gridDim.x * blockDim.x),
      [&](int64_t j, auto& v) {
    constexpr int N = sizeof(v[0]) / sizeof(float);
    float y[N], z[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      y[i] = (v[0][i] - v[1][i]) * g;
      z[i] = -y[i];
    }
    if constexpr (N == 1) {
      if (dp) dp[j] = fromFloat<T>(y[0]);
      if (dq) dq[j] = fromFloat<T>(z[0]);
    } else {
      if (dp) storeVector(dp + j, y);
      if (dq) storeVector(dq + j, z);
    }
  });
}

}  // namespace mm::cuda
