// The gradients of a chunk of a head, gla on Hopper: of queries, keys, values and log-decays, from the states before and behind it.
//
// With R = tril(dO v^T) and dS the gradient of the state behind the chunk (gla_hopper.cuh has the rest of the names):
//
//   dv = A^T dO + k' dS    dq' = R k' + dO S'^T    dk' = R^T q' + v dS^T    dq = scale exp(c - c_T) dq'    dk = exp(c_T - c) dk'
//
// The gradient of a log-decay is the sum over all paths that cross it: those that end at its step or behind it, sum q' dq', but not those
// that begin there, sum k' dk', and those that leave the chunk, exp(c_T) <S, dS> + sum k' (v dS^T). q' and k' are the rounded ones of the
// products, so that a pair of steps cancels behind both.
//
// Blocks walk over the chunks, as many as multiprocessors. q, k, v and dO of the next chunk come in while one is worked on, its states
// once those of this one have been read. A warpgroup has half the channels of each result.
#pragma once
#include "cuda/gla_hopper.cuh"

namespace mm::cuda::gla {

struct GradientTask {
  int64_t items = 0;  // chunks and heads
  int chunks = 0;     // of a sequence
};
struct GradientMaps {
  CUtensorMap q, k, v, dO, states, gradients;
};

struct GradientLayout {
  enum { Q, K, V, DO };
  static constexpr int stage = 4 * Rows::bytes;
  static constexpr int states = 2 * stage, gradients = states + State::bytes;
  static constexpr int att = gradients + State::bytes, r = att + Square::bytes;
  // parts of sums: over the steps of a warp; of <S, dS> by groups of 8 value channels; of k' (v dS^T) by warps
  static constexpr int parts = r + Square::bytes, through = parts + 8 * kWidth * 4, carried = through + 16 * kWidth * 4;
  static constexpr int decay = carried + 4 * kWidth * 4, leaving = decay + kWidth * 4;  // exp(c_T); paths that leave the chunk
  static constexpr int barriers = leaving + kWidth * 4, shared = barriers + 3 * 8 + 1024;  // and what aligning the first tile takes
};
static_assert(GradientLayout::shared <= 227 * 1024);

// Where the pair of channels (col, col + 1) of a step stands in a chunk of floats, in which rows are exchanged by pairs of 16 bytes.
__device__ __forceinline__ int floatPlace(int row, int col) { return row * kWidth + ((col / 4) ^ (row & 7) << 1) * 4 + col % 4; }

// A warpgroup's half of the channels, to a chunk of floats.
__device__ __forceinline__ void stageFloats(float* to, const float (&d)[32]) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane / 4, col = threadIdx.x / 128 * 64 + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      *reinterpret_cast<float2*>(to + floatPlace(row + 8 * half, col + 8 * j)) = {d[4 * j + 2 * half], d[4 * j + 2 * half + 1]};
}
__device__ __forceinline__ void readOwn(float (&x)[kOwnChannels], const float* from, int r) {
  *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(from + floatPlace(ownStep() + r, ownChannel()));
}

template <class G>
__global__ void __launch_bounds__(kThreads, 1)
    glaGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ GradientTask task,
                      const __grid_constant__ GradientMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Layout = GradientLayout;
  extern __shared__ __align__(1024) char dynamic[];
  char* const shared = dynamic + (1024 - sharedAddress(dynamic) % 1024) % 1024;
  const uint32_t base = sharedAddress(shared), full = base + Layout::barriers, statesFull = full + 16;
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(shared + offset); };
  const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0), warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  struct Item {
    int head, chunk, batch;
  };
  const auto itemOf = [&](int64_t index) -> Item {
    const int64_t slot = index / s.heads;
    return {int(index % s.heads), int(slot % task.chunks), int(slot / task.chunks)};
  };
  // by one thread
  const auto loadRows = [&](const Item& x, int stage) {
    const uint32_t to = base + stage * Layout::stage, bar = full + 8 * stage;
    arriveExpecting(bar, Layout::stage);
    copyTile<Rows>(to + Layout::Q * Rows::bytes, maps.q, bar, x.chunk * kSteps, x.head, x.batch);
    copyTile<Rows>(to + Layout::K * Rows::bytes, maps.k, bar, x.chunk * kSteps, x.head, x.batch);
    copyTile<Rows>(to + Layout::V * Rows::bytes, maps.v, bar, x.chunk * kSteps, x.head, x.batch);
    copyTile<Rows>(to + Layout::DO * Rows::bytes, maps.dO, bar, x.chunk * kSteps, x.head, x.batch);
  };
  const auto loadStates = [&](int64_t index) {
    arriveExpecting(statesFull, 2 * State::bytes);
    copyTile<State>(base + Layout::states, maps.states, statesFull, int(index * kWidth), 0, 0);
    copyTile<State>(base + Layout::gradients, maps.gradients, statesFull, int(index * kWidth), 0, 0);
  };

  if (threadIdx.x == 0) {
    for (int i = 0; i < 3; i++) initBarrier(full + 8 * i, 1);
    fenceBarriers();
  }
  __syncthreads();
  int64_t index = blockIdx.x;
  if (index >= task.items) return;
  if (threadIdx.x == 0) loadRows(itemOf(index), 0), loadStates(index);
  RawGates<G> raw;
  Item item = itemOf(index);
  loadGates(raw, s, item.batch, int64_t(item.chunk) * kSteps, item.head);
  int phases = 0, stage = 0, statesPhase = 0;  // a bit a stage
  const auto awaitRows = [&](int at) {
    waitBarrier(full + 8 * at, phases >> at & 1);
    phases ^= 1 << at;
  };

#pragma unroll 1
  for (; index < task.items; index += gridDim.x, stage ^= 1) {
    const int64_t nextIndex = index + gridDim.x, start = int64_t(item.chunk) * kSteps;
    const bool hasNext = nextIndex < task.items;
    const Item next = itemOf(hasNext ? nextIndex : index);
    if (threadIdx.x == 0 && hasNext) loadRows(next, stage ^ 1);
    char* const tiles = shared + stage * Layout::stage;
    char *const q = tiles + Layout::Q * Rows::bytes, *const k = tiles + Layout::K * Rows::bytes;
    // beyond the split: c, q and k as they came are in the other stage, which is loaded once more, and R in the place of q
    float* const spareC = floats((stage ^ 1) * Layout::stage);
    char *const spareQ = shared + (stage ^ 1) * Layout::stage + kSteps * kWidth * 4, *const spareK = spareQ + Rows::bytes;

    Own c;
    float total[kOwnChannels];
    accumulate(c, total, raw, floats(Layout::parts));
    const bool beyond = __syncthreads_or(beyondSplit(total));
    char *const square = shared + Layout::att, *const squareR = beyond ? q : shared + Layout::r;
    if (hasNext) loadGates(raw, s, next.batch, int64_t(next.chunk) * kSteps, next.head);
    awaitRows(stage);
    if (beyond) {
      if (hasNext) awaitRows(stage ^ 1);
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++) {
        *reinterpret_cast<float4*>(spareC + (ownStep() + r) * kWidth + ownChannel()) = {c[r][0], c[r][1], c[r][2], c[r][3]};
        *ownPiece(spareQ, r) = *ownPiece(q, r), *ownPiece(spareK, r) = *ownPiece(k, r);
      }
      __syncthreads();
      sumScores(square, spareC, spareQ, spareK, s.scale);
    }
    scaleOwn(k, [&](int r, int j) { return exp2Fast(total[j] - c[r][j]); });
    if (!beyond) scaleOwn(q, [&](int r, int j) { return exp2Fast(c[r][j] - total[j]) * s.scale; });
    if (warp == 0)
      *reinterpret_cast<float4*>(floats(Layout::decay) + ownChannel()) = {exp2Fast(total[0]), exp2Fast(total[1]), exp2Fast(total[2]),
                                                                          exp2Fast(total[3])};
    fenceAsyncProxy();
    __syncthreads();

    const uint32_t at = base + stage * Layout::stage;
    const uint64_t qD = tileDescriptor(at + Layout::Q * Rows::bytes), kD = tileDescriptor(at + Layout::K * Rows::bytes);
    const uint64_t vD = tileDescriptor(at + Layout::V * Rows::bytes), dOD = tileDescriptor(at + Layout::DO * Rows::bytes);
    const uint64_t statesD = tileDescriptor(base + Layout::states), gradientsD = tileDescriptor(base + Layout::gradients);
    float scores[32], dq[32], dk[32], dv[32];
    fenceProducts();
    {  // A by the first warpgroup, R by the second
      const uint64_t a = group ? dOD : qD, b = group ? vD : kD;
#pragma unroll
      for (int i = 0; i < kWidth / 16; i++)
        multiply<bf16, false, false>(scores, shifted(a, Rows::channels(i)), shifted(b, Rows::channels(i)), i > 0);
      commitProducts();
    }
    waitBarrier(statesFull, statesPhase);
    statesPhase ^= 1;
    fenceProducts();
#pragma unroll
    for (int i = 0; i < kWidth / 16; i++) {
      const uint32_t slab = group * State::slabBytes + State::rowOffset(16 * i);
      multiply<bf16, false, true>(dq, shifted(dOD, Rows::channels(i)), shifted(statesD, slab), i > 0);
      multiply<bf16, false, true>(dk, shifted(vD, Rows::channels(i)), shifted(gradientsD, slab), i > 0);
      multiply<bf16, false, false>(dv, shifted(kD, Rows::channels(i)),
                                   shifted(gradientsD, State::rowOffset(64 * group) + State::channels(i)), i > 0);
    }
    commitProducts();
    {  // <S, dS> by key channel: 8 of them and 8 value channels a thread
      const int piece = threadIdx.x % 16, row = threadIdx.x / 16;
      float sums[8] = {};
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const uint32_t place = State::offset(row + 16 * i, piece);
        const uint4 x = *reinterpret_cast<const uint4*>(shared + Layout::states + place);
        const uint4 y = *reinterpret_cast<const uint4*>(shared + Layout::gradients + place);
        const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float2 a = unpack2<bf16>(xs[e]), b = unpack2<bf16>(ys[e]);
          sums[2 * e] = fmaf(a.x, b.x, sums[2 * e]), sums[2 * e + 1] = fmaf(a.y, b.y, sums[2 * e + 1]);
        }
      }
      float4* to = reinterpret_cast<float4*>(floats(Layout::through) + row * kWidth + piece * 8);
      to[0] = {sums[0], sums[1], sums[2], sums[3]}, to[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
    waitProducts<1>();
    settle(scores);
    if (group || !beyond) storeTriangle(group ? squareR : square, scores, 0);
    if (group && beyond)  // no products with R
#pragma unroll
      for (int i = 0; i < 4; i++)
        *reinterpret_cast<uint4*>(shared + Layout::r + (threadIdx.x % 128 + 128 * i) * 16) = uint4{0, 0, 0, 0};
    fenceAsyncProxy();
    waitProducts<0>();
    settle(dq), settle(dk), settle(dv);
    const int row = warp % 4 * 16 + lane / 4, col = group * 64 + lane % 4 * 2;  // of the accumulators
    {  // sum of k' (v dS^T) over the steps
      float* carried = floats(Layout::carried) + warp % 4 * kWidth;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float sum[2] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const char* pair = k + Rows::offset(row + 8 * half, group * 8 + j) + lane % 4 * 4;
          const float2 x = unpack2<bf16>(*reinterpret_cast<const uint32_t*>(pair));
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
        for (int i = 0; i < 4; i++) dq[4 * j + i] *= i % 2 ? decay.y : decay.x;
      }
    __syncthreads();  // A and R are there, the states are read
    if (threadIdx.x == 0 && hasNext) loadStates(nextIndex);
    fenceProducts();
    const uint32_t half = group * Rows::slabBytes;
    const uint64_t attD = tileDescriptor(base + Layout::att), rD = tileDescriptor(base + Layout::r);
#pragma unroll
    for (int i = 0; i < kSteps / 16; i++) {
      const uint32_t steps = Rows::rowOffset(16 * i);
      multiply<bf16, false, true>(dq, shifted(rD, Square::channels(i)), shifted(kD, half + steps), true);
      multiply<bf16, true, true>(dk, shifted(rD, steps), shifted(qD, half + steps), true);
      multiply<bf16, true, true>(dv, shifted(attD, steps), shifted(dOD, half + steps), true);
    }
    commitProducts();
    if (threadIdx.x < kWidth) {
      float sum = 0.f, carried = 0.f;
#pragma unroll
      for (int i = 0; i < 16; i++) sum += floats(Layout::through)[i * kWidth + threadIdx.x];
#pragma unroll
      for (int i = 0; i < 4; i++) carried += floats(Layout::carried)[i * kWidth + threadIdx.x];
      floats(Layout::leaving)[threadIdx.x] = fmaf(floats(Layout::decay)[threadIdx.x], sum, carried);
    }
    waitProducts<0>();
    settle(dq), settle(dk), settle(dv);
    __syncthreads();  // v and dO are read: floats take their place

    const int64_t left = s.length - start;
    float* const staged = floats(stage * Layout::stage + Layout::V * Rows::bytes);
    if (g.dv.given)
#pragma unroll
      for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
          uint32_t x[4];
#pragma unroll
          for (int i = 0; i < 4; i++) x[i] = pack2<bf16>(dv[4 * (j + i) + 2 * h], dv[4 * (j + i) + 2 * h + 1]);
          chunk_scan::transposeQuad(x);
          const int t = row + 8 * h, p = group * 64 + (j + lane % 4) * 8;
          if (t >= left || p >= s.p) continue;
          *reinterpret_cast<uint4*>(g.dv.at<bf16>(item.batch, start + t, item.head) + p) = {x[0], x[1], x[2], x[3]};
        }

    const bool hasChannels = ownChannel() < s.n;
    Own crossing;  // what begins or ends at a step
    stageFloats(staged, dq);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kOwnSteps; r++) {
      float x[kOwnChannels], y[kOwnChannels];
      readOwn(x, staged, r);
      unpack4(y, *ownPiece(beyond ? spareQ : q, r));
      if (beyond) {
#pragma unroll
        for (int j = 0; j < kOwnChannels; j++) x[j] *= exp2Fast(c[r][j]) * s.scale;
        const int t = ownStep() + r;
#pragma unroll 1
        for (int u = 0; u <= t; u++) {
          const float weight = toFloat(*reinterpret_cast<const bf16*>(squareR + Square::offset(t, u / 8) + u % 8 * 2)) * s.scale;
          float ck[kOwnChannels], key[kOwnChannels];
          *reinterpret_cast<float4*>(ck) = *reinterpret_cast<const float4*>(spareC + u * kWidth + ownChannel());
          unpack4(key, *reinterpret_cast<const uint2*>(spareK + Rows::offset(u, lane / 2) + lane % 2 * 8));
#pragma unroll
          for (int j = 0; j < kOwnChannels; j++) x[j] = fmaf(weight * exp2Fast(c[r][j] - ck[j]), key[j], x[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) {
        crossing[r][j] = x[j] * y[j];
        if (!beyond) x[j] *= exp2Fast(c[r][j] - total[j]) * s.scale;
      }
      if (g.dq.given && hasChannels && ownStep() + r < left)
        *reinterpret_cast<uint2*>(g.dq.at<bf16>(item.batch, start + ownStep() + r, item.head) + ownChannel()) = pack4(x);
    }
    __syncthreads();
    stageFloats(staged, dk);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kOwnSteps; r++) {
      float x[kOwnChannels], y[kOwnChannels];
      readOwn(x, staged, r);
      unpack4(y, *ownPiece(beyond ? spareK : k, r));
      if (beyond) {
#pragma unroll
        for (int j = 0; j < kOwnChannels; j++) x[j] *= exp2Fast(total[j] - c[r][j]);
        const int u = ownStep() + r;
#pragma unroll 1
        for (int t = u; t < kSteps; t++) {
          const float weight = toFloat(*reinterpret_cast<const bf16*>(squareR + Square::offset(t, u / 8) + u % 8 * 2)) * s.scale;
          float cq[kOwnChannels], query[kOwnChannels];
          *reinterpret_cast<float4*>(cq) = *reinterpret_cast<const float4*>(spareC + t * kWidth + ownChannel());
          unpack4(query, *reinterpret_cast<const uint2*>(spareQ + Rows::offset(t, lane / 2) + lane % 2 * 8));
#pragma unroll
          for (int j = 0; j < kOwnChannels; j++) x[j] = fmaf(weight * exp2Fast(cq[j] - c[r][j]), query[j], x[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) {
        crossing[r][j] = fmaf(-x[j], y[j], crossing[r][j]);
        if (!beyond) x[j] *= exp2Fast(total[j] - c[r][j]);
      }
      if (g.dk.given && hasChannels && ownStep() + r < left)
        *reinterpret_cast<uint2*>(g.dk.at<bf16>(item.batch, start + ownStep() + r, item.head) + ownChannel()) = pack4(x);
    }

    float run[kOwnChannels] = {};  // sums over the steps from each on
#pragma unroll
    for (int r = kOwnSteps - 1; r >= 0; r--)
#pragma unroll
      for (int j = 0; j < kOwnChannels; j++) crossing[r][j] = run[j] += crossing[r][j];
    float4* sums = reinterpret_cast<float4*>(floats(Layout::through)) + lane;
    sums[warp * 32] = {run[0], run[1], run[2], run[3]};
    fenceAsyncProxy();
    __syncthreads();  // the stage is free
    if (beyond && hasNext && threadIdx.x == 0) loadRows(next, stage ^ 1);
    if (g.dgate.given) {
      const float4 x = *reinterpret_cast<const float4*>(floats(Layout::leaving) + ownChannel());
      float behind[kOwnChannels] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int w = 1; w < kThreads / 32; w++) {
        if (w <= warp) continue;
        const float4 y = sums[w * 32];
        behind[0] += y.x, behind[1] += y.y, behind[2] += y.z, behind[3] += y.w;
      }
#pragma unroll
      for (int r = 0; r < kOwnSteps; r++) {
        if (!hasChannels || ownStep() + r >= left) continue;
        float y[kOwnChannels];
#pragma unroll
        for (int j = 0; j < kOwnChannels; j++) y[j] = crossing[r][j] + behind[j];
        storeFloats<kOwnChannels>(g.dgate.at<G>(item.batch, start + ownStep() + r, item.head) + ownChannel(), y);
      }
    }
    item = next;
  }
#else
  __trap();
#endif
}

}  // namespace mm::cuda::gla
