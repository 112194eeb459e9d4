// The gradients of gla on Hopper. A block walks backwards over a segment, the gradient of the state behind the chunk in registers.
//
// With R = tril(dO v^T) and dS that gradient (gla_hopper.cuh has the rest of the names):
//
//   dv = A^T dO + k' dS    dq' = R k' + dO S'^T    dk' = R^T q' + v dS^T    dq = scale exp(c - c_T) dq'    dk = exp(c_T - c) dk'
//   dS before the chunk = exp(c_T) (dS + q'^T dO)
//
// The gradient of a log-decay is the sum over all paths that cross it: those that end at its step or behind it, sum q' dq', but not those
// that begin there, sum k' dk', and those that leave the chunk, exp(c_T) <S, dS> + sum k' (v dS^T). q' and k' are the rounded ones of the
// products, so that a pair of steps cancels behind both.
//
// q, k, v and dO of the next chunk come in while one is worked on, its state once that of this one has been read. A warpgroup has half the
// channels of each result. Registers are what is scarce: with 50 spilled the kernel took 3.2 ms instead of 2.3 at L = 103424, so the sums
// of the log-decays are made a second time.
#pragma once
#include "cuda/gla_hopper.cuh"

namespace mm::cuda::gla {

struct GradientMaps {
  CUtensorMap q, k, v, dO, states;
};

struct GradientLayout {
  enum { Q, K, V, DO };
  static constexpr int stage = 4 * Rows::bytes;
  static constexpr int state = 2 * stage, gradient = state + State::bytes;
  static constexpr int att = gradient + State::bytes, r = att + Square::bytes, spareR = r + Square::bytes;
  // parts of sums, by warps: over the steps, of k' (v dS^T), and of <S, dS>
  static constexpr int parts = spareR + Square::bytes, carried = parts, through = parts + 8 * kWidth * 4;
  static constexpr int decay = through + 8 * kWidth * 4, leaving = decay + kWidth * 4;          // exp(c_T); paths that leave the chunk
  static constexpr int barriers = leaving + kWidth * 4, shared = barriers + 3 * 8 + 1024;  // and what aligning the first tile takes
};
static_assert(GradientLayout::shared <= 227 * 1024);

// Where the channels (col, col + 1) of a step stand in a chunk of floats, in which rows are exchanged by pairs of 16 bytes.
__device__ __forceinline__ int floatPlace(int row, int col) { return row * kWidth + ((col / 4) ^ (row & 7) << 1) * 4 + col % 4; }

// A warpgroup's half of the channels, to a chunk of floats; from there to the threads that have the steps.
__device__ __forceinline__ void stageFloats(float* to, const float (&d)[32]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4, col = threadIdx.x / 128 * 64 + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<float2*>(to + floatPlace(row + 8 * half, col + 8 * j)) = {d[4 * j + 2 * half], d[4 * j + 2 * half + 1]};
}
__device__ __forceinline__ void readOwn(Own& x, const float* from) {
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++)
    *reinterpret_cast<float4*>(x[r]) = *reinterpret_cast<const float4*>(from + floatPlace(ownStep() + r, ownChannel()));
}

// For decays beyond the split: x_t += scale sum_{u <= t} R_tu k_u exp(c_t - c_u), or with QUERIES false
// x_u += scale sum_{t >= u} R_tu q_t exp(c_t - c_u). c is of the thread's steps, `all` of all steps; `others`: the keys, or the queries.
// Decays to other warps' steps split at the first, or the last, step of this one.
template <bool QUERIES>
__device__ __forceinline__ void addPairs(Own& x, const Own& c, const char* square, const float* all, const char* others, float scale) {
  const int first = ownStep(), piece = threadIdx.x % 32;
  constexpr float kSign = QUERIES ? 1.f : -1.f;
  constexpr int kEdge = QUERIES ? 0 : kOwnSteps - 1;
  const auto weight = [&](int own, int other) {
    const int t = QUERIES ? first + own : other, u = QUERIES ? other : first + own;
    return toFloat(*reinterpret_cast<const bf16*>(square + Square::offset(t, u / 8) + u % 8 * 2));
  };
  Own sum = {};
#pragma unroll 1
  for (int i = 0; i < kSteps; i++) {
    if (QUERIES ? i >= first : i < first + kOwnSteps) continue;
    float other[kOwnChannels], ci[kOwnChannels];
    readPiece(other, others, i, piece), readPiece(ci, all, i, piece);
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) other[j] *= exp2Approximate(kSign * (c[kEdge][j] - ci[j]));
#pragma unroll
    for (int r = 0; r < kOwnSteps; r++) {
      const float w = weight(r, i);
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) sum[r][j] = fmaf(w, other[j], sum[r][j]);
    }
  }
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) sum[r][j] *= exp2Approximate(kSign * (c[r][j] - c[kEdge][j]));
#pragma unroll 1
  for (int i = 0; i < kOwnSteps; i++) {
    float other[kOwnChannels], ci[kOwnChannels];
    readPiece(other, others, first + i, piece), readPiece(ci, all, first + i, piece);
#pragma unroll
    for (int r = 0; r < kOwnSteps; r++) {
      if (QUERIES ? i > r : i < r) continue;
      const float w = weight(r, first + i);
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) sum[r][j] = fmaf(w * exp2Approximate(kSign * (c[r][j] - ci[j])), other[j], sum[r][j]);
    }
  }
#pragma unroll
  for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
    for (int j = 0; j < kOwnChannels; j++) x[r][j] = fmaf(scale, sum[r][j], x[r][j]);
}

template <class G>
__global__ void __launch_bounds__(kThreads, 1)
    glaGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ Walk walk,
                      const __grid_constant__ GradientMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = GradientLayout;
  const Segment at(s, walk);
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers, stateFull = full + 16;
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(shared + offset); };
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto chunkAt = [&](int i) { return at.first + at.count - 1 - i; };
  // by one thread
  const auto loadRows = [&](int i) {
    const uint32_t to = base + i % 2 * Layout::stage, bar = full + i % 2 * 8;
    const int row = chunkAt(i) * kSteps;
    arriveExpecting(bar, Layout::stage);
    copyTile<Rows>(to + Layout::Q * Rows::bytes, maps.q, bar, row, at.head, at.batch);
    copyTile<Rows>(to + Layout::K * Rows::bytes, maps.k, bar, row, at.head, at.batch);
    copyTile<Rows>(to + Layout::V * Rows::bytes, maps.v, bar, row, at.head, at.batch);
    copyTile<Rows>(to + Layout::DO * Rows::bytes, maps.dO, bar, row, at.head, at.batch);
  };
  const auto loadState = [&](int i) {
    const int64_t index = (int64_t(at.batch) * walk.chunks + chunkAt(i)) * s.heads + at.head;
    arriveExpecting(stateFull, State::bytes);
    copyTile<State>(base + Layout::state, maps.states, stateFull, int(index * kWidth), 0, 0);
  };
  const auto load = [&](RawGates<G>& raw, int i) { loadGates(raw, s, at.batch, int64_t(chunkAt(i)) * kSteps, at.head); };

  if (threadIdx.x == 0) {
    for (int i = 0; i < 3; i++) initBarrier(full + 8 * i, 1);
    fenceBarriers();
    loadRows(0), loadState(0);
  }
  __syncthreads();
  RawGates<G> raw;
  load(raw, 0);
  StateTile gradient;
  readFirst<true>(gradient, s, walk, at, g.dFinal);
  int phases = 0;  // a bit a stage
  const auto awaitRows = [&](int i) {
    waitBarrier(full + i % 2 * 8, phases >> i % 2 & 1);
    phases ^= 1 << i % 2;
  };

#pragma unroll 1
  for (int i = 0; i < at.count; i++) {
    const int64_t start = int64_t(chunkAt(i)) * kSteps, left = s.length - start;
    const bool hasNext = i + 1 < at.count;
    const int stage = i % 2 * Layout::stage, other = Layout::stage - stage;
    char *const q = shared + stage + Layout::Q * Rows::bytes, *const k = shared + stage + Layout::K * Rows::bytes;
    // beyond the split: c, q and k as they came, in the other stage, which is loaded once more
    float* const spareC = floats(other);
    char *const spareQ = shared + other + kSteps * kWidth * 4, *const spareK = spareQ + Rows::bytes;
    if (threadIdx.x == 0 && hasNext) loadRows(i + 1);
    if (hasNext) prefetchGates<G>(s, at.batch, int64_t(chunkAt(i + 1)) * kSteps, at.head);
#pragma unroll
    for (int j = 0; j < kWidth / 8; j++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        *reinterpret_cast<uint32_t*>(shared + Layout::gradient + State::offset(stateRow() + lane / 4 + 8 * h, j) + lane % 4 * 4) =
            pack2<bf16>(gradient[j][2 * h], gradient[j][2 * h + 1]);

    Own c;
    float before[kOwnChannels], total[kOwnChannels];
    accumulate(c, before, total, raw, floats(Layout::parts));
    const bool beyond = beyondSplit(total);
    awaitRows(i);
    if (beyond) {
      if (hasNext) awaitRows(i + 1);
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++) {
        *reinterpret_cast<float4*>(spareC + (ownStep() + r) * kWidth + ownChannel()) = {c[r][0], c[r][1], c[r][2], c[r][3]};
        *ownPiece(spareQ, r) = *ownPiece(q, r), *ownPiece(spareK, r) = *ownPiece(k, r);
      }
      __syncthreads();
      sumScores(shared + Layout::att, spareC, spareQ, spareK, s.scale);
    }
    scaleOwn(k, [&](int r, int j) { return exp2Approximate(total[j] - c[r][j]); });
    scaleOwn(q, [&](int r, int j) { return exp2Approximate(beyond ? c[r][j] : c[r][j] - total[j]) * s.scale; });
    if (warp == 0)
      *reinterpret_cast<float4*>(floats(Layout::decay) + ownChannel()) = {exp2Approximate(total[0]), exp2Approximate(total[1]), exp2Approximate(total[2]),
                                                                          exp2Approximate(total[3])};
    fenceAsyncProxy();
    __syncthreads();

    const uint32_t tiles = base + stage;
    const uint64_t qD = tileDescriptor(tiles + Layout::Q * Rows::bytes), kD = tileDescriptor(tiles + Layout::K * Rows::bytes);
    const uint64_t vD = tileDescriptor(tiles + Layout::V * Rows::bytes), dOD = tileDescriptor(tiles + Layout::DO * Rows::bytes);
    const uint64_t stateD = tileDescriptor(base + Layout::state), gradientD = tileDescriptor(base + Layout::gradient);
    const uint32_t half = group * Rows::slabBytes;  // of the channels
    const int row = warp % 4 * 16 + lane / 4, col = group * 64 + lane % 4 * 2;  // of the accumulators
    float scores[32], dq[32], dk[32];
    fenceProducts();
    {  // A by the first warpgroup, R by the second
      const uint64_t a = group ? dOD : qD, b = group ? vD : kD;
#pragma unroll
      for (int n = 0; n < kWidth / 16; n++)
        multiply<bf16, false, false>(scores, shifted(a, Rows::channels(n)), shifted(b, Rows::channels(n)), n > 0);
      commitProducts();
    }
    waitBarrier(stateFull, i & 1);
    fenceProducts();
#pragma unroll
    for (int n = 0; n < kWidth / 16; n++) {
      const uint32_t slab = group * State::slabBytes + State::rowOffset(16 * n);
      multiply<bf16, false, true>(dq, shifted(dOD, Rows::channels(n)), shifted(stateD, slab), n > 0);
      multiply<bf16, false, true>(dk, shifted(vD, Rows::channels(n)), shifted(gradientD, slab), n > 0);
    }
    commitProducts();
    {  // <S, dS> by key channel: 8 of them and 8 value channels a thread
      const int piece = threadIdx.x % 16, row = threadIdx.x / 16;
      float sums[8] = {};
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const uint32_t place = State::offset(row + 16 * n, piece);
        const uint4 x = *reinterpret_cast<const uint4*>(shared + Layout::state + place);
        const uint4 y = *reinterpret_cast<const uint4*>(shared + Layout::gradient + place);
        const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float2 a = unpack2<bf16>(xs[e]), b = unpack2<bf16>(ys[e]);
          sums[2 * e] = fmaf(a.x, b.x, sums[2 * e]), sums[2 * e + 1] = fmaf(a.y, b.y, sums[2 * e + 1]);
        }
      }
#pragma unroll
      for (int e = 0; e < 8; e++) sums[e] += __shfl_xor_sync(0xffffffffu, sums[e], 16);
      float4* to = reinterpret_cast<float4*>(floats(Layout::through) + warp * kWidth + piece * 8);
      if (lane < 16) to[0] = {sums[0], sums[1], sums[2], sums[3]};
      else to[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
    waitProducts<1>();
    settle(scores);
    if (group) storeTriangle(shared + (beyond ? Layout::spareR : Layout::r), scores, 0);
    else if (!beyond) storeTriangle(shared + Layout::att, scores, 0);
    if (group && beyond)  // no products with R
#pragma unroll
      for (int n = 0; n < 4; n++)
        *reinterpret_cast<uint4*>(shared + Layout::r + (threadIdx.x % 128 + 128 * n) * 16) = uint4{0, 0, 0, 0};
    fenceAsyncProxy();
    __syncthreads();  // A and R are there
    const uint64_t attD = tileDescriptor(base + Layout::att), rD = tileDescriptor(base + Layout::r);
    float dv[32];
    fenceProducts();
#pragma unroll
    for (int n = 0; n < kWidth / 16; n++)
      multiply<bf16, false, false>(dv, shifted(kD, Rows::channels(n)),
                                   shifted(gradientD, State::rowOffset(64 * group) + State::channels(n)), n > 0);
#pragma unroll
    for (int n = 0; n < kSteps / 16; n++)
      multiply<bf16, true, true>(dv, shifted(attD, Square::rowOffset(16 * n)), shifted(dOD, half + Rows::rowOffset(16 * n)), true);
    commitProducts();
    waitProducts<1>();
    settle(dq), settle(dk);
    {  // sum of k' (v dS^T) over the steps
      float* carried = floats(Layout::carried) + warp % 4 * kWidth;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float sum[2] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const char* at = k + Rows::offset(row + 8 * half, group * 8 + j) + lane % 4 * 4;
          const float2 x = unpack2<bf16>(*reinterpret_cast<const uint32_t*>(at));
          sum[0] = fmaf(x.x, dk[4 * j + 2 * half], sum[0]), sum[1] = fmaf(x.y, dk[4 * j + 2 * half + 1], sum[1]);
        }
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
          for (int d = 4; d < 32; d *= 2) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], d);
        if (lane < 4) *reinterpret_cast<float2*>(carried + col + 8 * j) = {sum[0], sum[1]};
      }
    }
    if (!beyond)
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float2 decay = *reinterpret_cast<const float2*>(floats(Layout::decay) + col + 8 * j);
#pragma unroll
        for (int n = 0; n < 4; n++) dq[4 * j + n] *= n % 2 ? decay.y : decay.x;
      }
    else decayState(gradient, floats(Layout::decay));
    waitProducts<0>();
    settle(dv);
    __syncthreads();  // the state and its gradient are read
    if (threadIdx.x == 0 && hasNext) loadState(i + 1);
    fenceProducts();
#pragma unroll
    for (int n = 0; n < kSteps / 16; n++) {
      const uint32_t steps = Rows::rowOffset(16 * n);
      multiply<bf16, false, true>(dq, shifted(rD, Square::channels(n)), shifted(kD, half + steps), true);
      multiply<bf16, true, true>(dk, shifted(rD, steps), shifted(qD, half + steps), true);
    }
    issueAdvance(gradient, tiles + Layout::DO * Rows::bytes, tiles + Layout::Q * Rows::bytes);
    if (threadIdx.x < kWidth) {
      float sum = 0.f, carried = 0.f;
#pragma unroll
      for (int n = 0; n < 8; n++) sum += floats(Layout::through)[n * kWidth + threadIdx.x];
#pragma unroll
      for (int n = 0; n < 4; n++) carried += floats(Layout::carried)[n * kWidth + threadIdx.x];
      floats(Layout::leaving)[threadIdx.x] = fmaf(floats(Layout::decay)[threadIdx.x], sum, carried);
    }
    load(raw, i);  // once more: registers are too few to keep c
    if (g.dv.given)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
          uint32_t x[4];
#pragma unroll
          for (int n = 0; n < 4; n++) x[n] = pack2<bf16>(dv[4 * (j + n) + 2 * h], dv[4 * (j + n) + 2 * h + 1]);
          chunk_scan::transposeQuad(x);
          const int t = row + 8 * h, p = group * 64 + (j + lane % 4) * 8;
          if (t >= left || p >= s.p) continue;
          __stcs(reinterpret_cast<uint4*>(g.dv.at<bf16>(at.batch, start + t, at.head) + p), uint4{x[0], x[1], x[2], x[3]});
        }
    waitProducts<0>();
    settle(dq), settle(dk), settle(asProduct(gradient));
    if (!beyond) decayState(gradient, floats(Layout::decay));
    __syncthreads();  // v and dO are read: floats take their place, and that of the gradient
    float *const stagedQ = floats(stage + Layout::V * Rows::bytes), *const stagedK = floats(Layout::gradient);
    stageFloats(stagedQ, dq), stageFloats(stagedK, dk);
    sumGates(c, before, raw);
    if (beyond)
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++) readPiece(c[r], spareC, ownStep() + r, lane);
    if (hasNext) load(raw, i + 1);
    __syncthreads();

    const int count = ownCount(s, start);
    const auto store = [&](const Operand& result, const Own& x) {
      bf16* to = ownRows<bf16>(result, at.batch, start, at.head);
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++, to += result.time)
        if (r < count) __stcs(reinterpret_cast<uint2*>(to), pack4(x[r]));
    };
    Own x, crossing;  // crossing: what ends at a step less what begins there
    readOwn(x, stagedQ);
    if (beyond) {
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
        for (int j = 0; j < kOwnChannels; j++) x[r][j] *= exp2Approximate(c[r][j]) * s.scale;
      addPairs<true>(x, c, shared + Layout::spareR, spareC, spareK, s.scale);
    }
#pragma unroll
    for (int r = 0; r < kOwnSteps; r++) {
      float y[kOwnChannels];
      unpack4(y, *ownPiece(beyond ? spareQ : q, r));
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) {
        crossing[r][j] = x[r][j] * y[j];
        if (!beyond) x[r][j] *= exp2Approximate(c[r][j] - total[j]) * s.scale;
      }
    }
    if (g.dq.given) store(g.dq, x);
    readOwn(x, stagedK);
    if (beyond) {
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++)
#pragma unroll
        for (int j = 0; j < kOwnChannels; j++) x[r][j] *= exp2Approximate(total[j] - c[r][j]);
      addPairs<false>(x, c, shared + Layout::spareR, spareC, spareQ, s.scale);
    }
#pragma unroll
    for (int r = 0; r < kOwnSteps; r++) {
      float y[kOwnChannels];
      unpack4(y, *ownPiece(beyond ? spareK : k, r));
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) {
        crossing[r][j] = fmaf(-x[r][j], y[j], crossing[r][j]);
        if (!beyond) x[r][j] *= exp2Approximate(total[j] - c[r][j]);
      }
    }
    if (g.dk.given) store(g.dk, x);

    float run[kOwnChannels] = {};  // sums over the steps from each on
#pragma unroll
    for (int r = kOwnSteps - 1; r >= 0; r--)
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) crossing[r][j] = run[j] += crossing[r][j];
    float4* sums = reinterpret_cast<float4*>(floats(Layout::through)) + lane;
    sums[warp * 32] = {run[0], run[1], run[2], run[3]};
    fenceAsyncProxy();
    __syncthreads();  // the stage is free
    if (beyond && hasNext && threadIdx.x == 0) loadRows(i + 1);
    if (g.dgate.given) {
      const float4 leaving = *reinterpret_cast<const float4*>(floats(Layout::leaving) + ownChannel());
      float behind[kOwnChannels] = {leaving.x, leaving.y, leaving.z, leaving.w};
#pragma unroll
      for (int w = 1; w < kThreads / 32; w++) {
        if (w <= warp) continue;
        const float4 y = sums[w * 32];
        behind[0] += y.x, behind[1] += y.y, behind[2] += y.z, behind[3] += y.w;
      }
      G* to = ownRows<G>(g.dgate, at.batch, start, at.head);
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++, to += g.dgate.time) {
#pragma unroll
        for (int j = 0; j < kOwnChannels; j++) crossing[r][j] += behind[j];
        const float(&y)[kOwnChannels] = crossing[r];
        if (r >= count) continue;
        if constexpr (std::is_same_v<G, float>) __stcs(reinterpret_cast<float4*>(to), float4{y[0], y[1], y[2], y[3]});
        else __stcs(reinterpret_cast<uint2*>(to), pack4(y));
      }
    }
  }
  if (at.number || !g.wantsInitial) return;
  const int64_t pair = int64_t(at.batch) * s.heads + at.head;
  chunk_scan::writeState<kWidth>(gradient, s, g.dInitial + pair * s.stateSize(), stateRow(), s.p);
#else
  __trap();
#endif
}

}  // namespace mm::cuda::gla
