// attentionKvCache: few queries over many keys, bound by the bytes of the cache. Rows are the queries of all heads of a group,
// row t being head t % group of query t / group, since they read the same keys; a block takes a tile of rows and a split of the
// keys they see. The number of splits is chosen on the host by the capacity of the cache and the size of the device; tiles of keys are
// dealt out to the splits in turn, as many as there are, which only the device knows. A split leaves its maximum, sum and unnormalised
// o in the workspace, and they are joined in the order of the splits: by the block of a tile that ends last, which tickets tell
// (cuda/device.h), or, where there is much to join, by a second kernel; a single split writes its result itself. Lengths are forced
// into [0, Lmax].
//
// Tensor cores: tiles of 16 rows. Each warp takes 16 keys at once through its own ring of cp.async stages, without block barriers, and
// the warps' results are joined in order at the end. The first keys are asked for before the length has come. One query over 8192 keys
// of 8 heads on an H100, where the launch, the first bytes and the join are half of the time: 20.8 us with a second kernel, 18.8 with
// tickets, 18.0 overlapping with the kernel before, 16.5 with one block of 4 warps and 4 stages a multiprocessor (8 warps 17.1, two
// blocks 17.1; 3 stages 17.4: 64 KiB under way do not suffice, and at 103424 keys reach 91 % of the copy rate instead of 99). Asking for
// the first keys while the kernel before ends takes 0.4 to 0.7 us off 8192 keys and more; for as many as the stages hold, or twice that, by
// the length as it lies there by then, less.
// General: 4 rows (or one); a group of lanes holds one key, 16 bytes a lane where addresses allow, and keeps a running softmax of
// its own; 4 keys are in flight in every group.
//
// kvCacheAppend: cache[b, positions[b] + t] = x[b, t], copied in the largest units that fit. When any position does not fit,
// nothing is written.
#pragma once
#include "cuda/attention_forward.cuh"

namespace mm::cuda {

constexpr int kMostSplits = 128;

struct SplitPlan {
  int rows;             // group * Lq
  int tileRows, tiles;  // rows of a tile; tiles of a key-value head
  int splits;
  int depth;            // floats of a partial row of o
  float *o, *top, *total;  // (owner, split, tileRows, depth), (owner, split, tileRows); top in base 2
  uint32_t* tickets;       // zeros (owner), where the last block of an owner joins its splits
};

// What a block works on: owner = (batch entry, key-value head, tile of rows), neighbours in that order.
struct SplitItem {
  int batch, kvHead, row, rows, split, owner;  // row, rows: the tile's first row and rows
  int64_t partial;                             // (owner, split)
};
__device__ __forceinline__ SplitItem splitItem(const AttentionProblem& p, const SplitPlan& plan) {
  SplitItem x;
  const unsigned owners = p.sequences * p.kvHeads * plan.tiles, owner = blockIdx.x % owners;
  x.split = int(blockIdx.x / owners), x.owner = int(owner);
  x.kvHead = int(owner % unsigned(p.kvHeads));
  x.row = int(owner / unsigned(p.kvHeads) % unsigned(plan.tiles)) * plan.tileRows;
  x.rows = min(plan.tileRows, plan.rows - x.row);
  x.batch = int(owner / unsigned(p.kvHeads) / unsigned(plan.tiles));
  x.partial = int64_t(owner) * plan.splits + x.split;
  return x;
}
// The keys that any row of the tile sees.
__device__ __forceinline__ Span keysOfTile(const AttentionProblem& p, const AttentionSequence& s, const SplitItem& item) {
  return {p.keysOf(s, item.row / p.group).begin, p.keysOf(s, (item.row + item.rows - 1) / p.group).end};
}

// Writes column group `j` (N channels) of one finished row, or of its partial.
template <class T, int N>
__device__ __forceinline__ void writeRow(const AttentionProblem& p, const SplitPlan& plan, const SplitItem& item,
                                         const ForwardOperands<T>& x, int row, int j, const float (&o)[N], float top, float total) {
  if (plan.splits > 1) {
    const int64_t at = item.partial * plan.tileRows + row;
    storeFloats<N>(plan.o + at * plan.depth + j, o);
    if (j == 0) plan.top[at] = top, plan.total[at] = total;
    return;
  }
  const int query = (item.row + row) / p.group, head = item.kvHead * p.group + (item.row + row) % p.group;
  T* to = x.o.at(item.batch, query, head);
  const float factor = total == 0.f ? 0.f : 1.f / total;
#pragma unroll
  for (int e = 0; e < N; e++)
    if (j + e < p.dim) to[j + e] = fromFloat<T>(o[e] * factor);
  if (x.lse && j == 0)
    x.lse[(int64_t(item.batch) * p.heads + head) * p.queries + query] = total == 0.f ? -INFINITY : fmaf(top, kLn2, logf(total));
}

// ---- joining the splits in the block that ends last of an owner's
template <class T, int D, int THREADS>
__device__ __forceinline__ void joinSplitsLast(const AttentionProblem& p, const SplitPlan& plan, const SplitItem& item,
                                               const ForwardOperands<T>& x, char* shared) {
  constexpr int LANES = D / 4, TEAMS = THREADS / LANES, BATCH = 16;
  int* const last = reinterpret_cast<int*>(shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t *const ticket = plan.tickets + item.owner, before;
    asm volatile("fence.acq_rel.gpu;\natom.relaxed.gpu.global.add.u32 %0, [%1], 1;\nfence.acq_rel.gpu;"
                 : "=r"(before)
                 : "l"(ticket)
                 : "memory");
    *last = before == uint32_t(plan.splits - 1);
    if (*last) *ticket = 0;
  }
  __syncthreads();
  if (!*last) return;

  // A team of lanes takes the splits part, part + parts, ... of a row; the first of them come while the weights are computed.
  const int lane = threadIdx.x % LANES, team = threadIdx.x / LANES, splits = plan.splits;
  const int parts = max(1, TEAMS / item.rows), part = team % parts;
  const int64_t first = int64_t(item.owner) * splits * plan.tileRows;
  float *const weights = reinterpret_cast<float*>(shared + 16), *const stats = weights + item.rows * splits;
  float4 *const sums = reinterpret_cast<float4*>(shared + 16 + (item.rows * (splits + 2) * 4 + 15) / 16 * 16), y[BATCH];
  const auto fetch = [&](int row, int from) {
#pragma unroll
    for (int u = 0; u < BATCH; u++) {
      const int i = from + u * parts;
      if (row < item.rows && i < splits)
        y[u] = __ldcg(reinterpret_cast<const float4*>(plan.o + (first + int64_t(i) * plan.tileRows + row) * D + lane * 4));
    }
  };
  fetch(team / parts, part);
  for (int row = threadIdx.x / 32; row < item.rows; row += THREADS / 32) {
    constexpr int EACH = kMostSplits / 32;
    float top[EACH], total[EACH], largest = -INFINITY, sum = 0.f;
#pragma unroll
    for (int u = 0; u < EACH; u++) {
      const int i = threadIdx.x % 32 + u * 32;
      top[u] = -INFINITY, total[u] = 0.f;
      if (i < splits) {
        const int64_t at = first + int64_t(i) * plan.tileRows + row;
        top[u] = __ldcg(plan.top + at), total[u] = __ldcg(plan.total + at);
      }
    }
#pragma unroll
    for (int u = 0; u < EACH; u++) largest = fmaxf(largest, top[u]);
    largest = warpReduce<Max>(largest);
#pragma unroll
    for (int u = 0; u < EACH; u++) {
      const int i = threadIdx.x % 32 + u * 32;
      const float weight = top[u] == -INFINITY ? 0.f : exp2f(top[u] - largest);
      if (i < splits) weights[row * splits + i] = weight;
      if (weight != 0.f) sum = fmaf(weight, total[u], sum);
    }
    sum = warpReduce(sum);
    if (threadIdx.x % 32 == 0) stats[row * 2] = largest, stats[row * 2 + 1] = sum;
  }
  __syncthreads();
  for (int base = 0; base < item.rows; base += TEAMS / parts) {
    const int row = base + team / parts;
    float4 sum = {};
    for (int from = part; from < splits; from += BATCH * parts) {
      if (base > 0 || from > part) fetch(row, from);
#pragma unroll
      for (int u = 0; u < BATCH; u++) {
        const int i = from + u * parts;
        const float w = row < item.rows && i < splits ? weights[row * splits + i] : 0.f;
        if (w == 0.f) continue;
        sum.x = fmaf(w, y[u].x, sum.x), sum.y = fmaf(w, y[u].y, sum.y), sum.z = fmaf(w, y[u].z, sum.z), sum.w = fmaf(w, y[u].w, sum.w);
      }
    }
    if (parts > 1) {  // all rows are in this pass
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (part == 0)
        for (int i = 1; i < parts; i++) {
          const float4 v = sums[threadIdx.x + i * LANES];
          sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
    }
    if (part > 0 || row >= item.rows) continue;
    const float total = stats[row * 2 + 1], factor = total == 0.f ? 0.f : 1.f / total;
    const float v[4] = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
    const int query = (item.row + row) / p.group, head = item.kvHead * p.group + (item.row + row) % p.group;
    T* to = x.o.at(item.batch, query, head);
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (lane * 4 + e < p.dim) to[lane * 4 + e] = fromFloat<T>(v[e]);
    if (x.lse && lane == 0)
      x.lse[(int64_t(item.batch) * p.heads + head) * p.queries + query] =
          total == 0.f ? -INFINITY : fmaf(stats[row * 2], kLn2, logf(total));
  }
}

// ---- tensor cores
// One block a multiprocessor with 96 KiB under way, or two, where shared memory or many owners ask for it, with 64 KiB each.
template <int D, int B, int W = (D > 128 ? 2 : 4), int S = (B > 1 ? 3 : D < 128 ? 512 / D : 4)>
struct SplitTile {
  static constexpr int warps = W, threads = warps * 32, stages = S, blocks = B, pieces = tilePieces(D), rowBytes = pieces * 16;
  static constexpr int operand = 16 * rowBytes, ring = stages * 2 * operand;  // bytes of 16 keys; of a warp
  static constexpr int shared = warps * ring + warps * 16 * 2 * 4;            // and top, total of the warps
  static_assert(16 * D * 4 <= ring, "the ring holds a warp's o at the end");
};

template <class T, int D, class Tile>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks)
    attentionSplitMmaKernel(AttentionProblem p, SplitPlan plan, ForwardOperands<T> x) {
  constexpr int PIECES = Tile::pieces, STAGES = Tile::stages;
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const SplitItem item = splitItem(p, plan);
  char* const own = shared + warp * Tile::ring;
  const uint32_t ring = sharedAddress(own), lanesA = rowsFirst<PIECES>(lane), lanesB = piecesFirst<PIECES>(lane);
  const T *k = x.k.at(item.batch, 0, item.kvHead), *v = x.v.at(item.batch, 0, item.kvHead);
  const int first = (item.split * Tile::warps + warp) * 16, step = plan.splits * Tile::warps * 16;

  // Without a window the first keys are the same for every length: they come into the cache while the kernel before ends.
  const bool ahead = p.left < 0;
  if (ahead) {
    constexpr int LINES = (Tile::rowBytes + 127) / 128;  // of a key
    for (int i = lane; i < 16 * LINES; i += 32) {
      const int key = first + i / LINES, channel = i % LINES * 64;
      if (key < p.keys && channel < p.dim) prefetchLine(k + key * x.k.row + channel), prefetchLine(v + key * x.v.row + channel);
    }
  }
  awaitEarlierKernels();
  const int length = p.lengths ? p.lengths[item.batch] : p.keys;
  // The queries pass through the stage that is filled last.
  const uint32_t qTile = ring + (STAGES - 1) * 2 * Tile::operand;
  for (int i = lane; i < item.rows * PIECES; i += 32) {
    const int row = i / PIECES, piece = i % PIECES, t = item.row + row;
    const T* from = x.q.at(item.batch, t / p.group, item.kvHead * p.group + t % p.group);
    const bool valid = piece * 8 < p.dim;
    copyAsync16(qTile + swizzled<PIECES>(row, piece), valid ? from + piece * 8 : from, valid);
  }
  for (int i = item.rows * PIECES + lane; i < 16 * PIECES; i += 32)
    *reinterpret_cast<uint4*>(own + (STAGES - 1) * 2 * Tile::operand + swizzled<PIECES>(i / PIECES, i % PIECES)) = make_uint4(0, 0, 0, 0);
  commitAsync();
  int loadKey = first, stage = 0;
  const auto load = [&](int end) {
    if (loadKey < end) {
      const uint32_t kTile = ring + stage * 2 * Tile::operand;
      const int rows = end - loadKey;
      loadTile<16, PIECES, 32>(kTile, k + loadKey * x.k.row, x.k.row, rows, p.dim, lane);
      loadTile<16, PIECES, 32>(kTile + Tile::operand, v + loadKey * x.v.row, x.v.row, rows, p.dim, lane);
    }
    commitAsync();
    loadKey += step;
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  };
  if (ahead) load(p.keys);  // before the length is known
  const AttentionSequence s = {item.batch, 0, p.queries, 0, min(max(length, 0), p.keys)};
  const Span keys = keysOfTile(p, s, item);
  const int begin = keys.begin + first;
  if (!ahead) loadKey = begin, load(keys.end);
#pragma unroll
  for (int i = 1; i < STAGES - 1; i++) load(keys.end);
  waitAsync<STAGES - 1>();
  __syncwarp();
  uint32_t q[D / 16][1][4];
#pragma unroll
  for (int i = 0; i < D / 16; i++) ldmatrix4(q[i][0], blockAddress<PIECES>(qTile, lanesA, 0, i * 2));
  __syncwarp();
  if (ahead && begin < keys.end && begin + 16 > keys.end) {  // values that no row sees meet weights of zero: they must be numbers
    const int rows = keys.end - begin;
    waitAsync<0>();
    __syncwarp();
    for (int i = rows * PIECES + lane; i < 16 * PIECES; i += 32)
      *reinterpret_cast<uint4*>(own + Tile::operand + swizzled<PIECES>(i / PIECES, i % PIECES)) = make_uint4(0, 0, 0, 0);
    __syncwarp();
  }

  float o[1][D / 8][4] = {};
  Softmax<1> softmax;
  softmax.reset();
  // Keys that each of the two rows of this lane sees, and those that all rows see.
  Span seen[2];
#pragma unroll
  for (int h = 0; h < 2; h++) seen[h] = p.keysOf(s, (item.row + min(h * 8 + lane / 4, item.rows - 1)) / p.group);
  const Span common = {p.keysOf(s, (item.row + item.rows - 1) / p.group).begin, p.keysOf(s, item.row / p.group).end};
  int use = 0;
#pragma unroll 1
  for (int key = begin; key < keys.end; key += step) {
    load(keys.end);
    waitAsync<STAGES - 1>();
    __syncwarp();
    const uint32_t kTile = ring + use * 2 * Tile::operand, vTile = kTile + Tile::operand;
    float w[1][2][4] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
      uint32_t fb[4];
      ldmatrix4(fb, blockAddress<PIECES>(kTile, lanesB, 0, i * 2));
      mma161616<T>(w[0][0], w[0][1], q[i][0], fb);
    }
    if (key < common.begin || key + 16 > min(common.end, keys.end)) {
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int j = key + n * 8 + lane % 4 * 2 + e % 2;
          if (j < seen[e / 2].begin || j >= min(seen[e / 2].end, keys.end)) w[0][n][e] = -INFINITY;
        }
    }
    softmax.raise(w, o, p.scaleLog2);
    softmax.weigh(w[0][0], 0, p.scaleLog2);
    softmax.weigh(w[0][1], 0, p.scaleLog2);
    uint32_t a[1][4];
    packFragment<T>(a[0], w[0][0], w[0][1]);
    addRows<T, D, 1>(o, a, vTile, 0, lanesA);
    __syncwarp();
    use = use + 1 == STAGES ? 0 : use + 1;
  }

  // The warps' results meet in shared memory: o in the ring of each, top and total behind the rings.
  waitAsync<0>();
  __syncwarp();
  float *part = reinterpret_cast<float*>(own), *stats = reinterpret_cast<float*>(shared + Tile::warps * Tile::ring);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = h * 8 + lane / 4;
    const float total = softmax.sum(0, h);
    if (lane % 4 == 0) stats[warp * 32 + row] = softmax.top[0][h] * p.scaleLog2, stats[warp * 32 + 16 + row] = total;
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      *reinterpret_cast<float2*>(part + row * D + n * 8 + lane % 4 * 2) = make_float2(o[0][n][h * 2], o[0][n][h * 2 + 1]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < item.rows * (D / 4); i += Tile::threads) {
    const int row = i / (D / 4), j = i % (D / 4) * 4;
    float top = -INFINITY, total = 0.f, sum[4] = {};
#pragma unroll
    for (int w = 0; w < Tile::warps; w++) top = fmaxf(top, stats[w * 32 + row]);
#pragma unroll
    for (int w = 0; w < Tile::warps; w++) {
      const float weight = stats[w * 32 + row] == -INFINITY ? 0.f : exp2f(stats[w * 32 + row] - top);
      total = fmaf(weight, stats[w * 32 + 16 + row], total);
      const float4 y = *reinterpret_cast<const float4*>(reinterpret_cast<const float*>(shared + w * Tile::ring) + row * D + j);
      sum[0] = fmaf(weight, y.x, sum[0]), sum[1] = fmaf(weight, y.y, sum[1]);
      sum[2] = fmaf(weight, y.z, sum[2]), sum[3] = fmaf(weight, y.w, sum[3]);
    }
    writeRow(p, plan, item, x, row, j, sum, top, total);
  }
  if (plan.tickets) joinSplitsLast<T, D, Tile::threads>(p, plan, item, x, shared);
}

// ---- general
// Rows of up to D channels in vectors of V; a group of lanes shares a key, each lane E channels of it.
template <int V, int D, int R>
struct LaneTile {
  static constexpr int threads = 128, lanes = D / V < 32 ? D / V : 32, E = D / lanes, groups = threads / lanes, keys = 4;
  static constexpr int shared = groups * R * (D + 2) * 4;
};

template <class T, int V, int D, int R>
__global__ void __launch_bounds__(128) attentionSplitKernel(AttentionProblem p, SplitPlan plan, ForwardOperands<T> x) {
  using Tile = LaneTile<V, D, R>;
  constexpr int E = Tile::E, LANES = Tile::lanes, KEYS = Tile::keys;
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
  const SplitItem item = splitItem(p, plan);
  const AttentionSequence s = p.sequence(item.batch);
  const Span keys = keysOfTile(p, s, item);
  // Channel of element e: vectors of a row go round the lanes.
  const auto channel = [&](int e) { return (lane + e / V * LANES) * V + e % V; };

  float q[R][E], o[R][E] = {}, top[R], total[R];
  Span seen[R];
#pragma unroll
  for (int r = 0; r < R; r++) {
    const int t = item.row + min(r, item.rows - 1);
    const T* from = x.q.at(item.batch, t / p.group, item.kvHead * p.group + t % p.group);
#pragma unroll
    for (int e = 0; e < E; e++) q[r][e] = channel(e) < p.dim ? toFloat(from[channel(e)]) * p.scaleLog2 : 0.f;
    top[r] = -INFINITY, total[r] = 0.f;
    seen[r] = p.keysOf(s, t / p.group);
  }
  const T *k = x.k.at(item.batch, 0, item.kvHead), *v = x.v.at(item.batch, 0, item.kvHead);
  constexpr int STEP = Tile::groups * KEYS;
  for (int first = keys.begin + item.split * STEP; first < keys.end; first += plan.splits * STEP) {
    float fk[KEYS][E], fv[KEYS][E];
#pragma unroll
    for (int u = 0; u < KEYS; u++) {
      const int key = first + u * Tile::groups + group;
#pragma unroll
      for (int e = 0; e < E; e += V) {
        float a[V] = {}, b[V] = {};
        if (key < keys.end && channel(e) < p.dim) {
          loadFloats<V>(k + key * x.k.row + channel(e), a);
          loadFloats<V>(v + key * x.v.row + channel(e), b);
        }
#pragma unroll
        for (int i = 0; i < V; i++) fk[u][e + i] = a[i], fv[u][e + i] = b[i];
      }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      float score[KEYS], largest = top[r];
#pragma unroll
      for (int u = 0; u < KEYS; u++) {
        const int key = first + u * Tile::groups + group;
        float dot = 0.f;
#pragma unroll
        for (int e = 0; e < E; e++) dot = fmaf(q[r][e], fk[u][e], dot);
#pragma unroll
        for (int offset = LANES / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
        score[u] = key >= seen[r].begin && key < min(seen[r].end, keys.end) ? dot : -INFINITY;
        largest = fmaxf(largest, score[u]);
      }
      const float factor = top[r] == -INFINITY ? 0.f : exp2f(top[r] - largest), base = largest == -INFINITY ? 0.f : largest;
      top[r] = largest;
      total[r] *= factor;
#pragma unroll
      for (int e = 0; e < E; e++) o[r][e] *= factor;
#pragma unroll
      for (int u = 0; u < KEYS; u++) {
        const float weight = exp2f(score[u] - base);
        total[r] += weight;
#pragma unroll
        for (int e = 0; e < E; e++) o[r][e] = fmaf(weight, fv[u][e], o[r][e]);
      }
    }
  }

  float *part = reinterpret_cast<float*>(shared), *stats = part + Tile::groups * R * D;
#pragma unroll
  for (int r = 0; r < R; r++) {
    if (lane == 0) stats[(group * R + r) * 2] = top[r], stats[(group * R + r) * 2 + 1] = total[r];
#pragma unroll
    for (int e = 0; e < E; e++) part[(group * R + r) * D + channel(e)] = o[r][e];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < item.rows * plan.depth; i += Tile::threads) {
    const int r = i / plan.depth, j = i % plan.depth;
    float largest = -INFINITY, sum[1] = {}, all = 0.f;
    for (int g = 0; g < Tile::groups; g++) largest = fmaxf(largest, stats[(g * R + r) * 2]);
    for (int g = 0; g < Tile::groups; g++) {
      const float weight = stats[(g * R + r) * 2] == -INFINITY ? 0.f : exp2f(stats[(g * R + r) * 2] - largest);
      all = fmaf(weight, stats[(g * R + r) * 2 + 1], all);
      sum[0] = fmaf(weight, part[(g * R + r) * D + j], sum[0]);
    }
    writeRow(p, plan, item, x, r, j, sum, largest, all);
  }
}

// ---- joining the splits in a kernel of its own: a block a row; each lane four channels of every n-th split, these sums in order
template <class T>
__global__ void __launch_bounds__(128) attentionJoinSplitsKernel(AttentionProblem p, SplitPlan plan, ForwardOperands<T> x) {
  __shared__ float weights[kMostSplits], scratch[32];
  __shared__ float4 sums[128];
  const int head = int(blockIdx.x) % p.heads, query = int(blockIdx.x) / p.heads % p.queries, b = int(blockIdx.x) / p.heads / p.queries;
  const int t = query * p.group + head % p.group, splits = plan.splits;
  awaitEarlierKernels();
  const int64_t owner = (int64_t(b) * plan.tiles + t / plan.tileRows) * p.kvHeads + head / p.group;
  const int64_t first = owner * splits * plan.tileRows + t % plan.tileRows;  // of split 0; the next ones tileRows further each
  const float top = int(threadIdx.x) < splits ? plan.top[first + int64_t(threadIdx.x) * plan.tileRows] : -INFINITY;
  const float largest = blockReduce<Max>(top, scratch);
  const float weight = top == -INFINITY ? 0.f : exp2f(top - largest);
  const float total = blockReduce(weight == 0.f ? 0.f : weight * plan.total[first + int64_t(threadIdx.x) * plan.tileRows], scratch);
  if (int(threadIdx.x) < splits) weights[threadIdx.x] = weight;
  __syncthreads();
  const int lanes = plan.depth / 4, parts = 128 / lanes, j = int(threadIdx.x) % lanes * 4;
  float4 sum = {};
#pragma unroll 4
  for (int i = int(threadIdx.x) / lanes; i < splits; i += parts) {
    const float w = weights[i];
    if (w == 0.f) continue;
    const float4 y = *reinterpret_cast<const float4*>(plan.o + (first + int64_t(i) * plan.tileRows) * plan.depth + j);
    sum.x = fmaf(w, y.x, sum.x), sum.y = fmaf(w, y.y, sum.y), sum.z = fmaf(w, y.z, sum.z), sum.w = fmaf(w, y.w, sum.w);
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (int(threadIdx.x) >= lanes) return;
  for (int i = 1; i < parts; i++) {
    const float4 y = sums[threadIdx.x + i * lanes];
    sum.x += y.x, sum.y += y.y, sum.z += y.z, sum.w += y.w;
  }
  const float factor = total == 0.f ? 0.f : 1.f / total, o[4] = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
  T* to = x.o.at(b, query, head);
#pragma unroll
  for (int e = 0; e < 4; e++)
    if (j + e < p.dim) to[j + e] = fromFloat<T>(o[e]);
  if (x.lse && threadIdx.x == 0)
    x.lse[(int64_t(b) * p.heads + head) * p.queries + query] = total == 0.f ? -INFINITY : fmaf(largest, kLn2, logf(total));
}

// ---- kvCacheAppend: a block a token
// Rows of `units` units U from x (batch, added, heads) to cache; strides in units.
template <class U>
__global__ void __launch_bounds__(128) kvCacheAppendKernel(HeadView<U> cache, HeadView<const U> x, const int32_t* __restrict__ positions,
                                                           int batch, int added, int heads, int units, int capacity) {
  bool bad = false;
  for (int b = threadIdx.x; b < batch; b += blockDim.x) bad |= positions[b] < 0 || positions[b] > capacity - added;
  if (__syncthreads_or(bad)) return;
  const int b = int(blockIdx.x) / added, t = int(blockIdx.x) % added;
  U* to = cache.at(b, positions[b] + t, 0);
  const U* from = x.at(b, t, 0);
  for (int i = threadIdx.x; i < heads * units; i += blockDim.x) {
    const int h = i / units, unit = i % units;
    to[h * cache.head + unit] = from[h * x.head + unit];
  }
}

}  // namespace mm::cuda
