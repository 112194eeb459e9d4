// The gradients of a chunk with a decay per head.
#pragma once
#include "cuda/chunk_scan_mma_tiles.cuh"
#include "cuda/common/reduce.cuh"

namespace mm::cuda::chunk_scan {

template <int NT, int PT>
struct GradientTiles {
  static constexpr int keys = kChunk * NT * 2, values = kChunk * PT * 2, state = PT * NT * 2, square = kChunk * kChunk * 2;
  static constexpr int row = kChunk * 4;
  // q, k, v, dO, S, dS, att, R; scalars of the steps; sums by row (and column) of the warps' parts; diagonals of the triangles
  static constexpr int q = 0, k = keys, v = 2 * keys, dO = v + values, s = dO + values, ds = s + state, att = ds + state, r = att + square;
  static constexpr int steps = r + square, rows = steps + kStepBytes, cols = rows + 4 * row, inter = cols + 2 * row;
  static constexpr int carried = inter + 4 * row, diagonal = carried + 4 * row, bytes = diagonal + 2 * row;
};

// sums[row] = sum over the columns of this warp of v[m][half], rows as in forFragments
template <int M>
__device__ __forceinline__ void storeRowSums(float (&v)[M][2], float* sums, int row) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float x = v[m][half];
      x += __shfl_xor_sync(kAllLanes, x, 1);
      x += __shfl_xor_sync(kAllLanes, x, 2);
      if (threadIdx.x % 4 == 0) sums[row + 16 * m + 8 * half + threadIdx.x % 32 / 4] = x;
    }
}
// sums[col] = sum over the rows of this warp of v[n][j]
template <int N>
__device__ __forceinline__ void storeColumnSums(float (&v)[N][2], float* sums, int col) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float x = v[n][j];
#pragma unroll
      for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(kAllLanes, x, d);
      if (threadIdx.x % 32 < 4) sums[col + 8 * n + threadIdx.x % 4 * 2 + j] = x;
    }
}

// dq or dk of a group: the gradient itself, or the part of this block. adds(t, c): what comes to the pair of columns from elsewhere.
template <class T, int M, int N, class Adds>
__device__ __forceinline__ void storeKeyGradient(const float (&acc)[M][N][4], int row, int col, const Scan& s, const Gradient& g,
                                                 const Place& at, int group, int part, const Operand& result, float* heads, Adds&& adds) {
  forFragments<M, N>(row, col, [&](int m, int n, int half, int t, int c) {
    if (t >= at.length || c >= s.n) return;
    const float2 more = adds(t, c);
    const float x = acc[m][n][2 * half] + more.x, y = acc[m][n][2 * half + 1] + more.y;
    const int64_t step = at.batch * s.length + at.start + t;
    if (g.sharers > 1) *reinterpret_cast<float2*>(heads + ((step * s.groups + group) * g.sharers + part) * s.n + c) = {x, y};
    else *reinterpret_cast<uint32_t*>(result.at<T>(at.batch, at.start + t, group) + c) = pack2<T>(x, y);
  });
}

template <class T, int NT, int PT>
__global__ void __launch_bounds__(kGradientThreads)
mmaGradientKernel(const __grid_constant__ Scan s, const __grid_constant__ Gradient g, const __grid_constant__ MmaTask task) {
  using Tiles = GradientTiles<NT, PT>;
  constexpr int THREADS = kGradientThreads, KEYS = NT / 8, VALUES = PT / 8;  // pieces of a row
  const int virtualHeads = task.virtualHeads(s), share = s.share() * task.slices, parts = share / task.headsPerPart;
  const int64_t slot = blockIdx.x / (s.groups * parts);
  const int group = int(blockIdx.x / parts % s.groups), part = int(blockIdx.x % parts);
  const int firstHead = group * share + part * task.headsPerPart, endHead = firstHead + task.headsPerPart;
  const Place at = locate(s, slot, kChunk);
  if (!at.valid || !at.length) {
    for (int h = firstHead; g.wantsSkip && h < endHead; h++) {
      const int head = h / task.slices, slice = h % task.slices, end = min(s.p, (slice + 1) * PT);
      if (s.skip.wide) {
        for (int p = slice * PT + threadIdx.x; p < end; p += THREADS) g.skipParts[(slot * s.heads + head) * s.p + p] = 0.f;
      } else if (threadIdx.x == 0) g.skipParts[(slot * task.slices + slice) * s.heads + head] = 0.f;
    }
    return;
  }
  unsigned char* tiles = chunkScanShared;
  const uint32_t shared = sharedAddress(tiles), q = shared + Tiles::q, k = shared + Tiles::k, v = shared + Tiles::v;
  const uint32_t dO = shared + Tiles::dO, state = shared + Tiles::s, dstate = shared + Tiles::ds;
  const uint32_t att = shared + Tiles::att, r = shared + Tiles::r;
  const auto floats = [&](int offset) { return reinterpret_cast<float*>(tiles + offset); };
  const auto pair = [&](uint32_t word) { return unpack2<T>(word); };
  const float* steps = floats(Tiles::steps);
  const int64_t firstStep = (at.batch * s.length + at.start) * s.heads;
  const bool decay = g.wantsDecay(), hasState = !at.first || s.hasInitial, hasGradient = !at.last || g.hasFinal;

  loadTileAsync<THREADS, kChunk, KEYS>(q, s.q.at<const T>(at.batch, at.start, group), s.q.time, at.length, s.n);
  loadTileAsync<THREADS, kChunk, KEYS>(k, s.k.at<const T>(at.batch, at.start, group), s.k.time, at.length, s.n);

  using Square = WarpPart<kChunk>;
  using Keys = WarpPart<NT>;
  using Values = WarpPart<PT>;
  const Square square;
  const Keys keys;
  const Values values;
  typename Square::Fragments raw = {};  // scale q.k, the same for all heads of the group
  typename Keys::Fragments dq = {}, dk = {};

  for (int virtualHead = firstHead; virtualHead < endHead; virtualHead++) {
    const int head = virtualHead / task.slices, slice = virtualHead % task.slices, p0 = slice * PT;
    const int64_t index = slot * virtualHeads + virtualHead;
    const T *x = s.v.at<const T>(at.batch, at.start, head) + p0, *dy = g.dy.at<const T>(at.batch, at.start, head) + p0;
    __syncthreads();  // the tiles of the head before are read
    loadTileAsync<THREADS, kChunk, VALUES>(v, x, s.v.time, at.length, s.p - p0);
    loadTileAsync<THREADS, kChunk, VALUES>(dO, dy, g.dy.time, at.length, s.p - p0);
    loadFloatsAsync<THREADS, kStepFloats>(shared + Tiles::steps, task.steps + (slot * s.heads + head) * kStepFloats);
    commitAsync();
    if (hasGradient) loadTileAsync<THREADS, PT, KEYS>(dstate, static_cast<const T*>(task.gradients) + index * (PT * NT), NT, PT, NT);
    commitAsync();
    if (hasState) loadTileAsync<THREADS, PT, KEYS>(state, static_cast<const T*>(task.states) + index * (PT * NT), NT, PT, NT);
    commitAsync();
    waitAsync<2>();
    __syncthreads();

    if (virtualHead == firstHead) {
      warpProduct<T, Square::M, Square::N, KEYS, false, KEYS, false>(raw, q, square.row, k, square.col, 0, NT);
      forFragments<Square::M, Square::N>(0, 0, [&](int m, int n, int half, int, int) {
        raw[m][n][2 * half] *= s.scale, raw[m][n][2 * half + 1] *= s.scale;
      });
    }
    {  // att and R, and the sums over rows and columns of what passes through the decay mask
      typename Square::Fragments acc = {};
      float rows[Square::M][2] = {}, cols[Square::N][2] = {};
      warpProduct<T, Square::M, Square::N, VALUES, false, VALUES, false>(acc, dO, square.row, v, square.col, 0, PT);
      forFragments<Square::M, Square::N>(square.row, square.col, [&](int m, int n, int half, int t, int u) {
        const float dden = g.dden && slice == 0 && t < at.length ? g.dden[firstStep + int64_t(t) * s.heads + head] : 0.f;
        float a[2], b[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float e = decayBetween(steps, t, u + j), w = steps[W * kChunk + u + j], product = acc[m][n][2 * half + j] + dden;
          a[j] = u + j <= t ? raw[m][n][2 * half + j] * e : 0.f;
          b[j] = u + j <= t ? product * e * w * s.scale : 0.f;
          const float both = product * a[j];
          if (u + j < t) rows[m][half] = fmaf(w, both, rows[m][half]), cols[n][j] += both;
          if (u + j == t) floats(Tiles::diagonal)[t] = both, floats(Tiles::diagonal)[kChunk + t] = product;
        }
        *pairAt<8>(tiles + Tiles::att, t, u) = pack2<T>(a[0], a[1]);
        *pairAt<8>(tiles + Tiles::r, t, u) = pack2<T>(b[0], b[1]);
      });
      storeRowSums<Square::M>(rows, floats(Tiles::rows) + square.colPart * kChunk, square.row);
      storeColumnSums<Square::N>(cols, floats(Tiles::cols) + square.rowPart * kChunk, square.col);
    }
    waitAsync<1>();
    __syncthreads();

    {  // dv
      typename Values::Fragments acc = {};
      float carried[Values::M][2] = {};
      if (hasGradient) {
        warpProduct<T, Values::M, Values::N, KEYS, false, KEYS, false>(acc, k, values.row, dstate, values.col, 0, NT);
        forFragments<Values::M, Values::N>(values.row, values.col, [&](int m, int n, int half, int t, int p) {
          const float down = steps[DOWN * kChunk + t];
          const float2 value = pair(*pairAt<VALUES>(tiles + Tiles::v, t, p));
          float* d = acc[m][n] + 2 * half;
          d[0] *= down, d[1] *= down;
          carried[m][half] = fmaf(value.y, d[1], fmaf(value.x, d[0], carried[m][half]));
        });
      }
      storeRowSums<Values::M>(carried, floats(Tiles::carried) + values.colPart * kChunk, values.row);
      if (g.dv.given) {
        warpProduct<T, Values::M, Values::N, 8, true, VALUES, true>(acc, att, values.row, dO, values.col, values.row, kChunk);
        forFragments<Values::M, Values::N>(values.row, values.col, [&](int m, int n, int half, int t, int p) {
          if (t >= at.length || p0 + p >= s.p) return;
          const float w = steps[W * kChunk + t];
          float d[2] = {acc[m][n][2 * half] * w, acc[m][n][2 * half + 1] * w};
          if (s.skip.given) {
            const float2 dy2 = pair(*pairAt<VALUES>(tiles + Tiles::dO, t, p));
            const int64_t i = s.skip.wide ? int64_t(head) * s.p + p0 + p : head;
            d[0] = fmaf(element(s.skip.data, s.skip.dtype, i), dy2.x, d[0]);
            d[1] = fmaf(element(s.skip.data, s.skip.dtype, s.skip.wide ? i + 1 : i), dy2.y, d[1]);
          }
          *reinterpret_cast<uint32_t*>(g.dv.at<T>(at.batch, at.start + t, head) + p0 + p) = pack2<T>(d[0], d[1]);
        });
      }
    }
    if (g.wantsSkip && s.skip.wide && threadIdx.x < PT / 2 && p0 + int(threadIdx.x) * 2 < s.p) {
      const int p = threadIdx.x * 2;
      float sum[2] = {};
      for (int t = 0; t < at.length; t++) {
        const float2 a = pair(*pairAt<VALUES>(tiles + Tiles::v, t, p)), b = pair(*pairAt<VALUES>(tiles + Tiles::dO, t, p));
        sum[0] = fmaf(a.x, b.x, sum[0]), sum[1] = fmaf(a.y, b.y, sum[1]);
      }
      float* to = g.skipParts + (slot * s.heads + head) * s.p + p0 + p;
      to[0] = sum[0], to[1] = sum[1];
    }
    waitAsync<0>();
    __syncthreads();

    if (g.dq.given || decay) {
      typename Keys::Fragments acc = {};
      float inter[Keys::M][2] = {};
      if (hasState) {
        warpProduct<T, Keys::M, Keys::N, VALUES, false, KEYS, true>(acc, dO, keys.row, state, keys.col, 0, PT);
        forFragments<Keys::M, Keys::N>(keys.row, keys.col, [&](int m, int n, int half, int t, int c) {
          const float up = steps[UP * kChunk + t] * s.scale;
          const float2 query = pair(*pairAt<KEYS>(tiles + Tiles::q, t, c));
          const float d0 = acc[m][n][2 * half] * up, d1 = acc[m][n][2 * half + 1] * up;
          dq[m][n][2 * half] += d0, dq[m][n][2 * half + 1] += d1;
          inter[m][half] = fmaf(query.y, d1, fmaf(query.x, d0, inter[m][half]));
        });
      }
      storeRowSums<Keys::M>(inter, floats(Tiles::inter) + keys.colPart * kChunk, keys.row);
      if (g.dq.given) warpProduct<T, Keys::M, Keys::N, 8, false, KEYS, true>(dq, r, keys.row, k, keys.col, 0, keys.row + Keys::rows);
    }
    if (g.dk.given) {
      if (hasGradient) {
        typename Keys::Fragments acc = {};
        warpProduct<T, Keys::M, Keys::N, VALUES, false, KEYS, true>(acc, v, keys.row, dstate, keys.col, 0, PT);
        forFragments<Keys::M, Keys::N>(keys.row, keys.col, [&](int m, int n, int half, int t, int) {
          const float f = steps[DOWN * kChunk + t] * steps[W * kChunk + t];
          dk[m][n][2 * half] = fmaf(f, acc[m][n][2 * half], dk[m][n][2 * half]);
          dk[m][n][2 * half + 1] = fmaf(f, acc[m][n][2 * half + 1], dk[m][n][2 * half + 1]);
        });
      }
      warpProduct<T, Keys::M, Keys::N, 8, true, KEYS, true>(dk, r, keys.row, q, keys.col, keys.row, kChunk);
    }
    float through = 0.f;
    if (decay && hasState && hasGradient) {
      const uint4 *a = reinterpret_cast<const uint4*>(tiles + Tiles::s), *b = reinterpret_cast<const uint4*>(tiles + Tiles::ds);
      for (int i = threadIdx.x; i < PT * NT / 8; i += THREADS) {
        const uint4 x4 = a[i], y4 = b[i];
        const uint32_t xs[4] = {x4.x, x4.y, x4.z, x4.w}, ys[4] = {y4.x, y4.y, y4.z, y4.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 x2 = pair(xs[j]), y2 = pair(ys[j]);
          through = fmaf(x2.y, y2.y, fmaf(x2.x, y2.x, through));
        }
      }
    }
    __syncthreads();  // the triangle's tile is free: scratch of the reduction
    if (decay) {
      through = blockReduce(through, floats(Tiles::att)) * steps[UP * kChunk + kChunk - 1];
      if (threadIdx.x < kChunk) {
        const int t = threadIdx.x;
        const auto sum = [&](int offset, int count) {
          float all = 0.f;
          for (int i = 0; i < count; i++) all += floats(offset)[i * kChunk + t];
          return all;
        };
        const float cols = sum(Tiles::cols, Square::rowParts), carried = sum(Tiles::carried, Values::colParts);
        float* sums = task.sums + index * kGradientKinds * kChunk + t;
        sums[CROSSING * kChunk] = sum(Tiles::rows, Square::colParts) - steps[W * kChunk + t] * cols + sum(Tiles::inter, Keys::colParts);
        sums[CARRIED * kChunk] = carried;
        sums[DIRECT * kChunk] = floats(Tiles::diagonal)[t] + cols + carried;
        if (t == 0) task.through[index] = through;
      }
    }
    if (g.wantsSkip && !s.skip.wide && threadIdx.x < 32) {
      const float* diagonal = floats(Tiles::diagonal) + kChunk;
      const float sum = warpReduce(diagonal[threadIdx.x] + diagonal[32 + threadIdx.x]);
      if (threadIdx.x == 0) g.skipParts[(slot * task.slices + slice) * s.heads + head] = sum;
    }
  }
  // where den is differentiated every head is its own group
  if (g.dq.given)
    storeKeyGradient<T>(dq, keys.row, keys.col, s, g, at, group, part, g.dq, g.dqHeads, [&](int t, int c) {
      if (!g.before || part) return float2{0.f, 0.f};
      const float f = g.dden[firstStep + int64_t(t) * s.heads + group] * s.scale;
      const float* z = g.before + (slot * s.heads + group) * s.n + c;
      return float2{f * z[0], f * z[1]};
    });
  if (g.dk.given)
    storeKeyGradient<T>(dk, keys.row, keys.col, s, g, at, group, part, g.dk, g.dkHeads, [&](int, int c) {
      if (!g.behind || part) return float2{0.f, 0.f};
      const float* e = g.behind + (slot * s.heads + group) * s.n + c;
      return float2{e[0], e[1]};
    });
}

}  // namespace mm::cuda::chunk_scan
