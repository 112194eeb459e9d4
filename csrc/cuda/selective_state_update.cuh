// selectiveStateUpdate: d = dt + dtBias (softplus of it), state = exp(d A) state + d x B, out = (<C, state> + D x) silu(z), in
// place on the state (B, D, N) or (B, H, P, N), f32. Mamba-1 is the case of one head with P = D; "tied" is one dt, A, dtBias a head.
//
// The state is all the traffic: it is read and written once, in one launch. A team of 1 to 32 lanes takes R rows p of one head,
// 16 bytes of each row a lane, all R loads under way at once; B and C serve the R rows, and the sums over N are shuffles. What
// belongs to a row (step, x, skip, gate) is computed by every lane of its team.
//
// Tied operands with up to 128 states, those of Mamba-2, have a kernel of their own, in which no load waits for another: all addresses
// are known before the kernel before has ended, all loads are issued at once, as the bits that lie in memory, and each lane takes the
// scalars of one row. While the kernel before ends and leaves the memory idle, the first blocks ask for their states, and for those of
// blocks to come, into the L2 cache. States pass the L1 cache by and, once written, leave the L2 cache first.
//
// On an H100, bf16, H = 16, P = N = 128, B = 1, 8, 64: 1.9, 5.6, 44.9 us (45.4 where two states of B = 64 take turns); the driver's copy
// of as many bytes as the last 46.2. Nothing asked for 2.3, 6.7, 46.8; all of the first wave, nothing behind it 2.1, 5.7, 45.6; every
// block as it starts 2.0, 6.7, 45.3 (47.3 in turns); every block a wave ahead 2.5, 6.8, 49.5. 2 or 3 blocks of 256 threads a
// multiprocessor 48.4, 45.5. Bulk copies to shared memory and back 2.1, 6.8, 47.4, and plain stores 1.8, 6.2, 45.9; a grid that stays,
// with rings of them, 4.1, 9.1, 57.3. Without asking: plain stores 47.6; other hints the same; 2 rows a team 49.2, 8 rows 48.4, 1 row 56.
#pragma once
#include "cuda/half_math.cuh"

namespace mm::cuda {

// A float operand of any dtype, read one element at a time.
struct StateOperand {
  const void* data;  // null: absent
  int32_t dtype;
  int64_t batch, head, row;  // strides

  __device__ __forceinline__ float at(int64_t b, int64_t h, int64_t p) const {
    const int64_t i = b * batch + h * head + p * row;
    return dtype == MM_F32 ? static_cast<const float*>(data)[i] : dtype == MM_BF16 ? toFloat(static_cast<const bf16*>(data)[i])
        : toFloat(static_cast<const f16*>(data)[i]);
  }
};

template <class T>
struct StateUpdate {
  float* state;
  int64_t stateBatch, stateHead, stateRow;
  StateOperand x, dt, skip, gate, bias;
  const T *b, *c;
  int64_t bBatch, bGroup, cBatch, cGroup;
  const void* a;  // (H, P, N) of type P, or (H) of `aDtype` when tied
  int32_t aDtype;
  T* out;  // dense (B, H, P)
  unsigned heads, headsPerGroup, blocks;  // blocks of rows a head
  int32_t rows, states, lanes;            // P, N, lanes of a team
  bool softplus;
};

// 256 threads; block: rows blockIdx.x % blocks of head blockIdx.x / blocks. V elements at once, R rows a team. P: A's type.
template <class T, class P, bool TIED, int V, int R>
__global__ void __launch_bounds__(256) selectiveStateUpdateKernel(const StateUpdate<T> v) {
  const unsigned block = blockIdx.x % v.blocks, item = blockIdx.x / v.blocks, h = item % v.heads;
  const int64_t b = item / v.heads, group = h / v.headsPerGroup;
  const int lane = threadIdx.x & (v.lanes - 1), team = threadIdx.x / unsigned(v.lanes);
  const int first = (block * (blockDim.x / unsigned(v.lanes)) + team) * R;
  float* state = v.state + b * v.stateBatch + h * v.stateHead + first * v.stateRow;
  const T *pb = v.b + b * v.bBatch + group * v.bGroup, *pc = v.c + b * v.cBatch + group * v.cGroup;
  const P* a = static_cast<const P*>(v.a) + (int64_t(h) * v.rows + first) * v.states;

  float s[R][V], step[R], input[R], decay[R], sum[R];
  const auto load = [&](int n) {
#pragma unroll
    for (int r = 0; r < R; r++)
      if (first + r < v.rows) loadPacked<V>(state + r * v.stateRow + n, s[r]);
  };
  if (lane * V < v.states) load(lane * V);  // on its way while the steps are computed
  float tiedStep = 0.f, tiedDecay = 0.f;
  if (TIED) {
    tiedStep = v.dt.at(b, h, 0);
    if (v.bias.data) tiedStep += v.bias.at(0, h, 0);
    if (v.softplus) tiedStep = softplusFor<float>(tiedStep);
    tiedDecay = expf(tiedStep * StateOperand{v.a, v.aDtype, 0, 1, 0}.at(0, h, 0));
  }
#pragma unroll
  for (int r = 0; r < R; r++) {
    step[r] = tiedStep, decay[r] = tiedDecay, sum[r] = input[r] = 0.f;
    if (first + r >= v.rows) continue;
    if (!TIED) {
      step[r] = v.dt.at(b, h, first + r);
      if (v.bias.data) step[r] += v.bias.at(0, h, first + r);
      if (v.softplus) step[r] = softplusFor<float>(step[r]);
    }
    input[r] = v.x.at(b, h, first + r);
  }
  for (int n = lane * V; n < v.states; n += v.lanes * V) {
    if (n != lane * V) load(n);
    float vb[V], vc[V];
    loadPacked<V>(pb + n, vb);
    loadPacked<V>(pc + n, vc);
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (first + r >= v.rows) continue;
      float rate[V];
      if (!TIED) loadPacked<V>(a + int64_t(r) * v.states + n, rate);
#pragma unroll
      for (int i = 0; i < V; i++) {
        s[r][i] = fmaf(TIED ? decay[r] : expf(step[r] * rate[i]), s[r][i], step[r] * input[r] * vb[i]);
        sum[r] = fmaf(vc[i], s[r][i], sum[r]);
      }
      storePacked<V>(state + r * v.stateRow + n, s[r]);
    }
  }
  for (int offset = v.lanes / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int r = 0; r < R; r++) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], offset);
  if (lane) return;
#pragma unroll
  for (int r = 0; r < R; r++) {
    const int p = first + r;
    if (p >= v.rows) continue;
    if (v.skip.data) sum[r] = fmaf(v.skip.at(0, h, p), input[r], sum[r]);
    if (v.gate.data) sum[r] *= siluFor<float>(v.gate.at(b, h, p));
    v.out[int64_t(item) * v.rows + p] = fromFloat<T>(sum[r]);
  }
}

// ---- tied, one vector a lane

// A scalar operand as it lies in memory: nothing waits for it until its value is asked for.
struct RawScalar {
  const void* at = nullptr;  // null: absent
  int32_t dtype = MM_F32;
  uint32_t bits = 0;

  RawScalar() = default;
  __device__ __forceinline__ RawScalar(const StateOperand& x, int64_t b, int64_t h, int64_t p) : dtype(x.dtype) {
    if (x.data) at = static_cast<const char*>(x.data) + (b * x.batch + h * x.head + p * x.row) * (x.dtype == MM_F32 ? 4 : 2);
  }
  __device__ __forceinline__ void load() {
    if (!at) return;
    if (dtype == MM_F32) bits = *static_cast<const uint32_t*>(at);
    else bits = *static_cast<const uint16_t*>(at);
  }
  __device__ __forceinline__ float value() const {
    if (dtype == MM_F32) return __uint_as_float(bits);
    return dtype == MM_BF16 ? __uint_as_float(bits << 16) : toFloat(__ushort_as_half(static_cast<unsigned short>(bits)));
  }
};

constexpr int kTiedRows = 4, kTiedThreads = 256, kTiedBlocks = 4;  // rows of a team; at most, of a block; blocks of a multiprocessor

// Four rows of a head.
template <class T>
struct TiedTile {
  unsigned item, h;  // item = (batch entry, head)
  int64_t batch;
  int first;     // row
  float* state;  // of that row
  __device__ __forceinline__ TiedTile(const StateUpdate<T>& v, unsigned tile) {
    item = tile / v.blocks, h = item % v.heads, batch = item / v.heads;
    first = int(tile - item * v.blocks) * kTiedRows;
    state = v.state + batch * v.stateBatch + h * v.stateHead + first * v.stateRow;
  }
};
struct TiedTeams {
  unsigned tiles;         // a team each
  unsigned early, ahead;  // the first teams ask for their tile, and for the one that far behind it, before they wait
};

// Loads that pass the L1 cache by; stores that do, and leave the L2 cache first.
__device__ __forceinline__ float4 loadPassing(const float* from) {
  float4 x;
  asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from));
  return x;
}
__device__ __forceinline__ uint64_t leavesFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ void storePassing(float* to, const float4& x, uint64_t policy) {
  asm volatile("st.global.L1::no_allocate.L2::cache_hint.v4.f32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z),
               "f"(x.w), "l"(policy)
               : "memory");
}

// A team takes R rows of a head, at most as many as it has lanes; its lane r takes what belongs to row r.
template <class T>
__global__ void __launch_bounds__(kTiedThreads, kTiedBlocks) selectiveStateUpdateTiedKernel(const __grid_constant__ StateUpdate<T> v,
                                                                                              TiedTeams teams) {
  constexpr int R = kTiedRows;
  const unsigned lane = threadIdx.x & (v.lanes - 1), place = (blockIdx.x * blockDim.x + threadIdx.x) / unsigned(v.lanes);
  const int n = int(lane) * 4;
  const auto ask = [&](unsigned tile) {
    if (tile >= teams.tiles || n >= v.states || n % 32) return;  // a line is 32 floats
    const TiedTile<T> t(v, tile);
#pragma unroll
    for (int r = 0; r < R; r++)
      if (t.first + r < v.rows) prefetchLine(t.state + r * v.stateRow + n);
  };
  if (place < teams.early) ask(place), ask(place + teams.ahead);

  const TiedTile<T> tile(v, min(place, teams.tiles - 1));
  const int64_t batch = tile.batch, group = tile.h / v.headsPerGroup;
  const int first = tile.first, count = place < teams.tiles && n < v.states ? min(R, v.rows - first) : 0;
  float* const state = tile.state + n;
  const T *const pb = v.b + batch * v.bBatch + group * v.bGroup + n, *const pc = v.c + batch * v.cBatch + group * v.cGroup + n;
  const int row = min(first + int(lane % R), v.rows - 1);
  RawScalar dt(v.dt, batch, tile.h, 0), bias(v.bias, 0, tile.h, 0), rate(StateOperand{v.a, v.aDtype, 0, 1, 0}, 0, tile.h, 0);
  RawScalar x(v.x, batch, tile.h, row), skip(v.skip, 0, tile.h, row), gate(v.gate, batch, tile.h, row);

  awaitEarlierKernels();
  // All loads, before anything that waits for one.
  float4 s[R];
#pragma unroll
  for (int r = 0; r < R; r++)
    if (r < count) s[r] = loadPassing(state + r * v.stateRow);
  dt.load(), rate.load(), bias.load(), x.load();
  Pack<T, 4> b = {}, c = {};
  if (n < v.states) b = *reinterpret_cast<const Pack<T, 4>*>(pb), c = *reinterpret_cast<const Pack<T, 4>*>(pc);
  skip.load(), gate.load();

  const uint64_t policy = leavesFirst();
  float step = dt.value();
  if (bias.at) step += bias.value();
  if (v.softplus) step = softplusFor<float>(step);
  const float decay = expf(step * rate.value()), own = x.value();
  float vb[4], vc[4], sum[R];
  unpack(b, vb), unpack(c, vc);
#pragma unroll
  for (int r = 0; r < R; r++) {
    const float input = step * __shfl_sync(0xffffffffu, own, r, v.lanes);
    sum[r] = 0.f;
    if (r >= count) continue;
    s[r].x = fmaf(decay, s[r].x, input * vb[0]), s[r].y = fmaf(decay, s[r].y, input * vb[1]);
    s[r].z = fmaf(decay, s[r].z, input * vb[2]), s[r].w = fmaf(decay, s[r].w, input * vb[3]);
    sum[r] = fmaf(vc[3], s[r].w, fmaf(vc[2], s[r].z, fmaf(vc[1], s[r].y, vc[0] * s[r].x)));
    storePassing(state + r * v.stateRow, s[r], policy);
  }
  for (int offset = v.lanes / 2; offset > 0; offset /= 2)
#pragma unroll
    for (int r = 0; r < R; r++) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], offset);
  float result = sum[0];
#pragma unroll
  for (int r = 1; r < R; r++) result = int(lane) == r ? sum[r] : result;
  if (skip.at) result = fmaf(skip.value(), own, result);
  if (gate.at) result *= siluFor<float>(gate.value());
  if (place < teams.tiles && lane < R && first + int(lane) < v.rows)
    v.out[int64_t(tile.item) * v.rows + first + lane] = fromFloat<T>(result);
}

}  // namespace mm::cuda
