// selectiveScanBackward. With dy = dOut silu(z) and ds_t = C_t dy_t + exp(d_{t+1} A) ds_{t+1}:
//   dC_t = sum_channels dy_t s_t, dB_t = sum_channels ds_t d_t u_t, dU_t = d_t <ds_t, B_t> + D dy_t,
//   d d_t = u_t <ds_t, B_t> + sum_n A ds_t exp(d_t A) s_{t-1}, dA = sum_t d_t ds_t exp(d_t A) s_{t-1}, dZ = dOut y silu'(z).
//
// A thread owns a channel, as in the forward. A sweep leaves the state before every 32 steps; the main kernel walks these tiles
// from last to first, 16 steps at a time: for each state the 16 steps forward again, their decays and states in registers, then
// the 16 steps back. Only the first half of a tile is walked once more, for the state in its middle. What a state and channel
// need between two visits (A, ds, dA) lies in shared memory, so that the loop over states is rolled and N is any number.
//
// dB and dC are sums over channels, thus over lanes: of 16 steps of both at once. For f32 by shuffles, 124 instructions for the 32
// sums; for bf16 and f16 by tensor cores, 36: the values are operands of tf32 products (f32 sums) that add four lanes and place
// the sums in one tile. Warps are added in shared memory, blocks of channels through the workspace, all in a fixed order. (A value
// that is not finite makes NaN of the tf32 sums of its 16 steps.)
//
// 16 states in 2-byte operands have kernels of their own on sm_90: selective_scan_halves.cuh.
#pragma once
#include "cuda/selective_scan.cuh"

namespace mm::cuda {

// c += a b with a row-major 16x8, b 8x8. Fragments: a (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b (t, g), (t + 4, g);
// c (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1), g = lane / 4, t = lane % 4. Of a and b the low 13 bits are not read.
__device__ __forceinline__ void mmaTf32(float (&c)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
                   "r"(__float_as_uint(b0)),
                 "r"(__float_as_uint(b1)));
}

// Sums over the warp of 16 + 16 values; lane l gets that of value scanLane<T>(l), where c's come behind b's.
template <class T>
__device__ __forceinline__ int scanLane(int lane) {
  if constexpr (std::is_same_v<T, float>) return lane;
  else return (lane & 24) + lane % 4 * 2 + (lane & 4 ? 1 : 0);
}
template <class T>
__device__ __forceinline__ float sumScanLanes(const float (&b)[kScanSteps], const float (&c)[kScanSteps]) {
  const int lane = threadIdx.x % 32;
  float v2[2], sum[1];
  if constexpr (std::is_same_v<T, float>) {
    float v32[32], v16[16], v8[8], v4[4];
#pragma unroll
    for (int i = 0; i < 16; i++) v32[i] = b[i], v32[16 + i] = c[i];
    foldLanes(v32, lane, 16, v16);
    foldLanes(v16, lane, 8, v8);
    foldLanes(v8, lane, 4, v4);
    foldLanes(v4, lane, 2, v2);
    foldLanes(v2, lane, 1, sum);
  } else {
    // Product i adds four values over the four lanes of a group: its second operand is one in column 2i for k < 4 and in column
    // 2i + 1 for k >= 4, so that they end in these columns, of rows g and g + 8.
    float sumB[4] = {}, sumC[4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float even = lane / 4 == 2 * i ? 1.f : 0.f, odd = lane / 4 == 2 * i + 1 ? 1.f : 0.f;
      mmaTf32(sumB, b[2 * i], b[2 * i + 8], b[2 * i + 1], b[2 * i + 9], even, odd);
      mmaTf32(sumC, c[2 * i], c[2 * i + 8], c[2 * i + 1], c[2 * i + 9], even, odd);
    }
    // Lane 4g + t holds steps 2t, 2t + 1, 2t + 8, 2t + 9 of both, to be added over the groups g.
    const float v8[8] = {sumB[0], sumB[1], sumB[2], sumB[3], sumC[0], sumC[1], sumC[2], sumC[3]};
    float v4[4];
    foldLanes(v8, lane, 16, v4);
    foldLanes(v4, lane, 8, v2);
    foldLanes(v2, lane, 4, sum);
  }
  return sum[0];
}

struct ScanBackward {
  ScanInputs in;
  ScanOperand dOut, dU, dDelta, dZ;  // the last three absent where not wanted
  const float* dLastState;           // (B, D, N) or null
  const float *starts, *carries;     // (B, chunks, N, D): states before and gradients behind the chunks; null: one chunk
  const float *borders, *borderSums;
  float *partialB, *partialC;  // (B, G, blocks, N, L), null where constant or not wanted
  float* partial;              // (B, chunks, rows, D): dA (N), dB and dC (N each) where constant, dD, dDeltaBias
  float* carried;              // (3, B, L, D): <ds, B>, d step, y between passes; null where one pass does
  int32_t rows, rowB, rowC, rowD;  // rows of `partial`; -1: absent
};

template <class T>
struct ScanBackwardShared {
  char *u, *delta, *dOut, *z;
  T *b, *c;
  float *a, *ds, *da, *border, *middle, *constB, *constC, *db, *dc, *sums;
  uint32_t bytes;

  __host__ __device__ __forceinline__ ScanBackwardShared(char* base, const ScanShape& v, int channels, bool gated) {
    ScanShared shared{base, 0};
    const int tile = channels * ScanTile<T, kScanBorder>::kBytes, slots = v.count * channels;
    u = shared.take<char>(true, tile), delta = shared.take<char>(true, tile), dOut = shared.take<char>(true, tile),
        z = shared.take<char>(gated, tile);
    b = shared.take<T>(v.variesB, v.count * kScanBorder), c = shared.take<T>(v.variesC, v.count * kScanBorder);
    for (float** slot : {&a, &ds, &da, &border, &middle}) *slot = shared.take<float>(true, slots);
    constB = shared.take<float>(!v.variesB, slots), db = shared.take<float>(!v.variesB, slots);
    constC = shared.take<float>(!v.variesC, slots), dc = shared.take<float>(!v.variesC, slots);
    sums = shared.take<float>(v.variesB || v.variesC, 2 * v.count * channels);
    bytes = shared.used;
  }
};

template <class T, bool VARIES>
__global__ void __launch_bounds__(128, 2) selectiveScanBwdKernel(const ScanBackward v) {
  extern __shared__ __align__(128) char scanShared[];
  constexpr int STEPS = kScanBorder;
  const ScanShape& shape = v.in.shape;
  const ScanBackwardShared<T> m(scanShared, shape, blockDim.x, v.in.z.data);
  const ScanPlace place(shape, blockDim.x);
  const bool active = int(threadIdx.x) < place.valid, opens = shape.first == 0, closes = shape.first + shape.count == shape.states;
  const bool wantsY = v.dZ.data, wantsSums = v.partialB || v.partialC;
  const int64_t d = place.channel + threadIdx.x, chunkRow = int64_t(place.chunk) * shape.states + shape.first,
      chunkRows = int64_t(shape.chunks) * shape.states;
  const int64_t borders = (shape.length + STEPS - 1) / STEPS, plane = shape.batch * shape.length * shape.channels;
  fillScanParameter(m.a, v.in.a, shape, place);
  if (m.constB) fillScanParameter(m.constB, v.in.b, shape, place);
  if (m.constC) fillScanParameter(m.constC, v.in.c, shape, place);
  for (int n = 0; n < shape.count; n++) {
    const int64_t last = (place.b * shape.channels + d) * shape.states + shape.first + n;
    scanSlot(m.ds, n) = !active ? 0.f : v.carries ? v.carries[place.at(shape, chunkRow + n, chunkRows)] : v.dLastState
        ? v.dLastState[last] : 0.f;
    scanSlot(m.da, n) = 0.f;
    if (m.db) scanSlot(m.db, n) = 0.f;
    if (m.dc) scanSlot(m.dc, n) = 0.f;
  }
  const float bias = v.in.bias.data && active ? v.in.bias.at(d) : 0.f, skip = v.in.d.data && active ? v.in.d.at(d) : 0.f;
  float dSkip = 0.f, dBias = 0.f;

  for (int64_t tile = (place.end + STEPS - 1) / STEPS - 1; tile * STEPS >= place.begin; tile--) {
    const int64_t t = tile * STEPS;
    const int left = scanLeft(t, place.end, STEPS);
    __syncthreads();  // all have read the last tile of B and C, and stored the last gradients
    loadScanRows<T, STEPS>(m.u, v.in.u, place, t, left);
    loadScanRows<T, STEPS>(m.delta, v.in.delta, place, t, left);
    loadScanRows<T, STEPS>(m.dOut, v.dOut, place, t, left);
    if (m.z) loadScanRows<T, STEPS>(m.z, v.in.z, place, t, left);
    if (m.b) loadScanStates<T, STEPS>(m.b, v.in.b, shape, place, t, left);
    if (m.c) loadScanStates<T, STEPS>(m.c, v.in.c, shape, place, t, left);
    commitAsync();
    {
      const float sum = v.starts && active ? v.borderSums[place.at(shape, tile, borders)] : 0.f;
      for (int n = 0; n < shape.count; n++) {
        float s = active ? v.borders[place.at(shape, tile * shape.states + shape.first + n, borders * shape.states)] : 0.f;
        if (v.starts && active) s = fmaf(exp2Approximate(sum * scanSlot(m.a, n)), v.starts[place.at(shape, chunkRow + n, chunkRows)], s);
        scanSlot(m.border, n) = s;
      }
    }
    waitAsync<0>();
    __syncthreads();
    if (t > place.begin) {
      prefetchScanRow(v.in.u, place, t - STEPS, sizeof(T));
      prefetchScanRow(v.in.delta, place, t - STEPS, sizeof(T));
      prefetchScanRow(v.dOut, place, t - STEPS, sizeof(T));
      if (m.z) prefetchScanRow(v.in.z, place, t - STEPS, sizeof(T));
    }
    if (left > kScanSteps) {  // to the middle of the tile
      float step[kScanSteps], du[kScanSteps];
      readScanDeltas<T, STEPS>(m.delta, 0, bias, shape.softplus, left, step);
      readScanSteps<T, STEPS>(m.u, 0, du);
#pragma unroll
      for (int i = 0; i < kScanSteps; i++) du[i] *= step[i] * kLn2;
#pragma unroll 2
      for (int n = 0; n < shape.count; n++) {
        const float a = scanSlot(m.a, n);
        float s = scanSlot(m.border, n), b[kScanSteps];
        readScanState<T, VARIES>(shape.variesB, m.b + n * STEPS, VARIES || shape.variesB ? 0.f : scanSlot(m.constB, n), b);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) s = fmaf(exp2Approximate(step[i] * a), s, du[i] * b[i]);
        scanSlot(m.middle, n) = s;
      }
    }
#pragma unroll 1
    for (int sub = left > kScanSteps ? kScanSteps : 0; sub >= 0; sub -= kScanSteps) {
      float* starts = sub ? m.middle : m.border;
      // stepU: gradient of step u, dStep: of the step through the decays
      float step[kScanSteps], du[kScanSteps], dy[kScanSteps], stepU[kScanSteps], dStep[kScanSteps], y[kScanSteps];
      readScanDeltas<T, STEPS>(m.delta, sub, bias, shape.softplus, left, step);
      readScanSteps<T, STEPS>(m.u, sub, du);
      readScanSteps<T, STEPS>(m.dOut, sub, dy);
#pragma unroll
      for (int i = 0; i < kScanSteps; i++) {
        y[i] = skip * du[i];
        du[i] *= step[i] * kLn2;
        stepU[i] = dStep[i] = 0.f;
      }
      if (m.z) {
        float z[kScanSteps];
        readScanSteps<T, STEPS>(m.z, sub, z);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) dy[i] *= z[i] * sigmoidFor<T>(z[i]);
      }
      if (!opens && active)
#pragma unroll
        for (int i = 0; i < kScanSteps; i++)
          if (sub + i < left) {
            const int64_t at = place.at(shape, t + sub + i, shape.length);
            stepU[i] = v.carried[at], dStep[i] = v.carried[plane + at], y[i] = v.carried[2 * plane + at];
          }
      float* sums = m.sums ? m.sums + (sub ? shape.count * int(blockDim.x) : 0) : nullptr;  // [warp][state][32]
#pragma unroll 1
      for (int n = 0; n < shape.count; n++) {
        const float a = scanSlot(m.a, n), before = scanSlot(starts, n);
        float ds = scanSlot(m.ds, n), da = 0.f, b[kScanSteps], c[kScanSteps], decay[kScanSteps], s[kScanSteps];
        readScanState<T, VARIES>(shape.variesB, m.b + n * STEPS + sub, VARIES || shape.variesB ? 0.f : scanSlot(m.constB, n), b);
        readScanState<T, VARIES>(shape.variesC, m.c + n * STEPS + sub, VARIES || shape.variesC ? 0.f : scanSlot(m.constC, n), c);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) {
          decay[i] = exp2Approximate(step[i] * a);
          s[i] = fmaf(decay[i], i ? s[i - 1] : before, du[i] * b[i]);
        }
        if (wantsY)
#pragma unroll
          for (int i = 0; i < kScanSteps; i++) y[i] = fmaf(c[i], s[i], y[i]);
        // From here on s[i] becomes dC's product and decay[i] dB's.
#pragma unroll
        for (int i = kScanSteps - 1; i >= 0; i--) {
          ds = fmaf(dy[i], c[i], ds);
          s[i] *= dy[i];
          stepU[i] = fmaf(ds, b[i], stepU[i]);
          const float decayed = ds * decay[i], w = decayed * (i ? s[i - 1] : before);
          decay[i] = ds * du[i];
          da = fmaf(w, step[i], da);
          dStep[i] = fmaf(w, a, dStep[i]);
          ds = decayed;
        }
        scanSlot(m.ds, n) = ds;
        scanSlot(m.da, n) += da;
        if (!VARIES) {
          float db = 0.f, dc = 0.f;
#pragma unroll
          for (int i = 0; i < kScanSteps; i++) db += decay[i], dc += s[i];
          if (m.db) scanSlot(m.db, n) += db;
          if (m.dc) scanSlot(m.dc, n) += dc;
        }
        if (wantsSums) {
          const float total = sumScanLanes<T>(decay, s);
          const int lane = threadIdx.x % 32;
          sums[(int(threadIdx.x / 32) * shape.count + n) * 32 + scanLane<T>(lane)] = total;
        }
      }
      if (wantsSums) {
        __syncthreads();  // the other half of m.sums takes the next 16 steps, so that one barrier does
        for (int i = threadIdx.x; i < shape.count * 32; i += blockDim.x) {
          float total = 0.f;
          for (int warp = 0; warp < int(blockDim.x / 32); warp++) total += sums[warp * shape.count * 32 + i];
          const int n = i / 32, step16 = i % 16;
          float* to = i % 32 < 16 ? v.partialB : v.partialC;
          const int64_t row = (place.b * shape.groups + place.group) * shape.blocks + place.block;
          if (to && sub + step16 < left) to[(row * shape.states + shape.first + n) * shape.length + t + sub + step16] = total;
        }
      }
      if (!closes) {
        if (active)
#pragma unroll
          for (int i = 0; i < kScanSteps; i++)
            if (sub + i < left) {
              const int64_t at = place.at(shape, t + sub + i, shape.length);
              v.carried[at] = stepU[i], v.carried[plane + at] = dStep[i], v.carried[2 * plane + at] = y[i];
            }
        continue;
      }
      if (wantsY) {
        float z[kScanSteps], up[kScanSteps];
        readScanSteps<T, STEPS>(m.z, sub, z);
        readScanSteps<T, STEPS>(m.dOut, sub, up);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) {
          const float gate = sigmoidFor<T>(z[i]);
          z[i] = up[i] * y[i] * gate * fmaf(z[i], 1.f - gate, 1.f);
        }
        writeScanSteps<T, STEPS>(m.z, sub, z);
      }
      float u[kScanSteps];
      readScanSteps<T, STEPS>(m.u, sub, u);
#pragma unroll
      for (int i = 0; i < kScanSteps; i++) {
        dSkip = fmaf(dy[i], u[i], dSkip);
        dStep[i] = fmaf(stepU[i], u[i], dStep[i]);
        u[i] = fmaf(stepU[i], step[i] * kLn2, dy[i] * skip);
      }
      writeScanSteps<T, STEPS>(m.u, sub, u);
      if (shape.softplus) {
        float raw[kScanSteps];
        readScanSteps<T, STEPS>(m.delta, sub, raw);
#pragma unroll
        for (int i = 0; i < kScanSteps; i++) dStep[i] *= sigmoidFor<T>(raw[i] + bias);
      }
      writeScanSteps<T, STEPS>(m.delta, sub, dStep);
#pragma unroll
      for (int i = 0; i < kScanSteps; i++)
        if (sub + i < left) dBias += dStep[i];
    }
    if (closes) {
      __syncwarp();
      if (v.dU.data) storeScanRows<T, STEPS>(m.u, v.dU, place, t, left);
      if (v.dDelta.data) storeScanRows<T, STEPS>(m.delta, v.dDelta, place, t, left);
      if (wantsY) storeScanRows<T, STEPS>(m.z, v.dZ, place, t, left);
    }
  }
  if (!active) return;
  const int64_t part = (place.b * shape.chunks + place.chunk) * v.rows;
  const auto put = [&](int64_t row, float value) { v.partial[(part + row) * shape.channels + d] = value; };
  for (int n = 0; n < shape.count; n++) {
    put(shape.first + n, scanSlot(m.da, n) * kLn2);
    if (m.db) put(v.rowB + shape.first + n, scanSlot(m.db, n));
    if (m.dc) put(v.rowC + shape.first + n, scanSlot(m.dc, n));
  }
  if (closes) put(v.rowD, dSkip), put(v.rowD + 1, dBias);
}

// dB and dC that vary: (groups, blocks, inner) -> (groups, inner), blocks in order. blockIdx.y: which.
template <class T>
struct ScanProjectionSums {
  const float* partial[2];
  T* out[2];
};
template <class T>
__global__ void __launch_bounds__(256) selectiveScanProjectionKernel(const ScanProjectionSums<T> v, int64_t groups, int blocks,
    int64_t inner) {
  const float* partial = blockIdx.y ? v.partial[1] : v.partial[0];
  T* out = blockIdx.y ? v.out[1] : v.out[0];
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (!out || i >= groups * inner) return;
  const int64_t group = i / inner, j = i - group * inner;
  float sum = 0.f;
#pragma unroll 8
  for (int k = 0; k < blocks; k++) sum += partial[(group * blocks + k) * inner + j];
  out[i] = fromFloat<T>(sum);
}

// Gradients of parameters: (parts, rows, D) -> sums over the parts in order, each run of rows a (D, count) result. 32 columns by 8
// turns of parts a block.
struct ScanParameterSums {
  static constexpr int kMost = 5;
  float* out[kMost];  // null: not wanted
  int32_t first[kMost], count[kMost];
};
static __global__ void __launch_bounds__(256) selectiveScanParameterKernel(const ScanParameterSums v, const float* __restrict__ partial,
    int64_t parts, int rows, int64_t channels) {
  __shared__ float turns[8][32];
  const int lane = threadIdx.x % 32, turn = threadIdx.x / 32;
  const int64_t column = int64_t(blockIdx.x) * 32 + lane;
  float sum = 0.f;
  if (column < rows * channels)
#pragma unroll 4
    for (int64_t part = turn; part < parts; part += 8) sum += partial[part * rows * channels + column];
  turns[turn][lane] = sum;
  __syncthreads();
  if (turn || column >= rows * channels) return;
  sum = 0.f;
#pragma unroll
  for (int k = 0; k < 8; k++) sum += turns[k][lane];
  const int row = int(column / channels);
  const int64_t d = column - row * channels;
#pragma unroll
  for (int k = 0; k < ScanParameterSums::kMost; k++)
    if (v.out[k] && row >= v.first[k] && row < v.first[k] + v.count[k]) v.out[k][d * v.count[k] + row - v.first[k]] = sum;
}

// ---- host

// Parts of the workspace that do not depend on the kernels, and the rows of `partial`.
struct ScanBackwardParts {
  int32_t rows, rowB = -1, rowC = -1, rowD;
  float *ends, *back, *sums, *borders, *borderSums, *partialB, *partialC, *partial;

  ScanBackwardParts() = default;
  ScanBackwardParts(const MMCall* c, const ScanShape& shape, int border, Scratch& s) {
    using namespace ops::selective_scan_bwd;
    rows = shape.states;
    if (!shape.variesB) rowB = rows, rows += shape.states;
    if (!shape.variesC) rowC = rows, rows += shape.states;
    rowD = rows, rows += 2;
    const int64_t perStep = shape.states * shape.channels, borderCount = shape.batch * ceilDiv(shape.length, border),
        chunked = shape.chunks > 1 ? shape.batch * shape.chunks : 0;
    const int64_t projection = shape.batch * shape.groups * shape.blocks * shape.states * shape.length;
    ends = s.take<float>(chunked * perStep), back = s.take<float>(chunked * perStep), sums = s.take<float>(chunked * shape.channels);
    borders = s.take<float>(borderCount * perStep), borderSums = s.take<float>(chunked ? borderCount * shape.channels : 0);
    const bool wantsB = shape.variesB && hasOut(c, DB), wantsC = shape.variesC && hasOut(c, DC);
    float *b = s.take<float>(wantsB ? projection : 0), *p = s.take<float>(wantsC ? projection : 0);
    partialB = wantsB ? b : nullptr, partialC = wantsC ? p : nullptr;
    partial = s.take<float>(shape.batch * shape.chunks * rows * shape.channels);
  }
};

// The call's operands and these parts; `carried` is left to the caller.
template <class T>
ScanBackward scanBackward(const MMCall* c, const ScanInputs& inputs, const ScanBackwardParts& parts) {
  using namespace ops::selective_scan_bwd;
  const ScanShape& shape = inputs.shape;
  const auto optional = [&](int slot) { return hasOut(c, slot) ? scanOperand<T>(out(c, slot), shape.perGroup) : ScanOperand{}; };
  ScanBackward v = {};
  v.in = inputs;
  v.dOut = scanOperand<T>(in(c, DOUT), shape.perGroup);
  v.dU = optional(DU), v.dDelta = optional(DDELTA), v.dZ = optional(DZ);
  v.dLastState = has(c, DLAST_STATE) ? data<const float>(in(c, DLAST_STATE)) : nullptr;
  if (shape.chunks > 1) v.starts = parts.ends, v.carries = parts.back;
  v.borders = parts.borders, v.borderSums = parts.borderSums;
  v.partialB = parts.partialB, v.partialC = parts.partialC, v.partial = parts.partial;
  v.rows = parts.rows, v.rowB = parts.rowB, v.rowC = parts.rowC, v.rowD = parts.rowD;
  return v;
}

// Behind the main kernel: sums of the partial results.
template <class T>
int32_t launchScanSums(const MMCall* c, const ScanShape& shape, const ScanBackwardParts& parts) {
  using namespace ops::selective_scan_bwd;
  ScanProjectionSums<T> projections = {};
  if (parts.partialB) projections.partial[0] = parts.partialB, projections.out[0] = data<T>(out(c, DB));
  if (parts.partialC) projections.partial[1] = parts.partialC, projections.out[1] = data<T>(out(c, DC));
  if (projections.out[0] || projections.out[1]) {
    const int64_t inner = shape.states * shape.length, groups = shape.batch * shape.groups;
    const int32_t status = launch(c, selectiveScanProjectionKernel<T>, dim3(unsigned(ceilDiv(groups * inner, 256)), 2), dim3(256), 0,
        projections, groups, shape.blocks, inner);
    if (status != MM_OK) return status;
  }
  ScanParameterSums parameters = {};
  int k = 0;
  const auto add = [&](int slot, int first, int count) {
    if (hasOut(c, slot)) parameters.out[k] = data<float>(out(c, slot)), parameters.first[k] = first, parameters.count[k] = count, k++;
  };
  add(DA, 0, shape.states);
  if (!shape.variesB) add(DB, parts.rowB, shape.states);
  if (!shape.variesC) add(DC, parts.rowC, shape.states);
  add(DD, parts.rowD, 1);
  add(DDELTA_BIAS, parts.rowD + 1, 1);
  if (!k) return MM_OK;
  return launch(c, selectiveScanParameterKernel, dim3(unsigned(ceilDiv(parts.rows * shape.channels, 32))), dim3(256), 0, parameters,
      parts.partial, shape.batch * shape.chunks, parts.rows, shape.channels);
}

// selective_scan_halves.cu
int32_t scanInHalves(const MMCall* c);
uint64_t scanHalvesWorkspace(const MMCall* c);
int32_t selectiveScanBackwardHalves(const MMCall* c);

}  // namespace mm::cuda
