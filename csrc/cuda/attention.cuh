// What the attention kernels share: the problem, its sequences and masks, and tiles in shared memory.
//
// attention: o = softmax(scale q k^T + mask) v with q, o (B, Lq, H, D), k, v (B, Lk, Hk, D) of any strides but dense channels,
// lse (B, H, Lq). Head h reads key-value head h / (H / Hk). Query i of a sequence stands at key position p = i + keys - queries
// and sees the keys [p - left, p + right] that exist. A sequence is a batch entry, a packed segment (cuSeqlens), or a batch
// entry with as many keys as `lengths` says (a cache). Starts and lengths are read on the device and forced into the tensors'
// bounds: wrong ones give wrong results (rows outside all segments stay unwritten), but touch no other memory.
//
// A block works on a tile of rows of one sequence and one head. Packed sequences have unknown lengths, so a launch has
// rows / tile + sequences slots for tiles: sequence s owns the slots from cu[s] / tile + s on, always enough for its rows.
#pragma once
#include "cuda/common/approximate.cuh"
#include "cuda/common/mma.cuh"
#include "cuda/kernel.cuh"

namespace mm::cuda {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;

// A strided (B, L, H, D) operand whose channels are dense.
template <class T>
struct HeadView {
  T* data;
  int64_t batch, row, head;
  __host__ __device__ T* at(int64_t b, int64_t l, int64_t h) const { return data + b * batch + l * row + h * head; }
};
template <class T>
HeadView<T> headView(const MMTensorView& v) {
  return {static_cast<T*>(v.data), v.stride[0], v.stride[1], v.stride[2]};
}
// Whether every row starts at a multiple of `n` elements from the first.
inline bool rowsAlign(const MMTensorView& v, int n) {
  for (int i = 0; i < 3; i++)
    if (v.shape[i] > 1 && v.stride[i] % n) return false;
  return true;
}

struct Span {
  int begin, end;
};

struct AttentionSequence {
  int batch, firstQuery, queries, firstKey, keys;
};

struct AttentionProblem {
  int sequences;         // batch entries or packed segments
  int queries, keys;     // Lq, Lk of the tensors
  int heads, kvHeads, group, dim;
  int left, right;       // -1: unlimited
  float scale, scaleLog2;  // of the scores; the same times log2(e)
  const int32_t *cuQ, *cuK;  // packed: starts of the segments
  const int32_t* lengths;    // keys of a sequence; null: all

  __host__ __device__ bool packed() const { return cuQ != nullptr; }

  __device__ AttentionSequence sequence(int i) const {
    if (!cuQ) return {i, 0, queries, 0, lengths ? min(max(lengths[i], 0), keys) : keys};
    const int q0 = min(max(cuQ[i], 0), queries), q1 = min(max(cuQ[i + 1], q0), queries);
    const int k0 = min(max(cuK[i], 0), keys), k1 = min(max(cuK[i + 1], k0), keys);
    return {0, q0, q1 - q0, k0, k1 - k0};
  }
  // Keys that query i sees. Both ends rise with i.
  __device__ Span keysOf(const AttentionSequence& s, int i) const {
    const int p = i + s.keys - s.queries;
    return {left < 0 ? 0 : max(0, p - left), right < 0 ? s.keys : max(0, min(s.keys, p + right + 1))};
  }
  // Queries that see any of the keys [first, end).
  __device__ Span queriesOf(const AttentionSequence& s, int first, int end) const {
    const int offset = s.keys - s.queries;
    return {right < 0 ? 0 : min(s.queries, max(0, first - right - offset)),
            left < 0 ? s.queries : max(0, min(s.queries, end + left - offset))};
  }
};

// Slots for tiles of `rows` queries or keys of all sequences.
inline int64_t tileSlots(const AttentionProblem& p, int64_t length, int rows) {
  if (!p.sequences) return 0;
  return p.packed() ? length / rows + p.sequences : ceilDiv(length, rows) * p.sequences;
}

// The last sequence whose slots start at or before `slot`, by a search of the whole warp.
template <int ROWS>
__device__ __forceinline__ int findSequence(const int32_t* cu, int count, int slot) {
  const int lane = threadIdx.x % 32;
  int low = 0, high = count;
  while (high - low > 1) {
    const int step = (high - low + 31) / 32, at = low + step * lane;
    const bool before = lane == 0 || (at < high && cu[at] / ROWS + at <= slot);
    low += step * (31 - __clz(__ballot_sync(0xffffffffu, before)));
    high = min(high, low + step);
  }
  return low;
}

// The sequence and the first row of a slot; false where the slot is empty. KEYS: tiles of keys, else of queries.
template <int ROWS, bool KEYS>
__device__ __forceinline__ bool findTile(const AttentionProblem& p, int slot, AttentionSequence& s, int& first) {
  const int32_t* cu = KEYS ? p.cuK : p.cuQ;
  if (cu) {
    const int i = findSequence<ROWS>(cu, p.sequences, slot);
    s = p.sequence(i);
    first = (slot - cu[i] / ROWS - i) * ROWS;
  } else {
    s = p.sequence(slot % p.sequences);
    first = slot / p.sequences * ROWS;
  }
  return first >= 0 && first < (KEYS ? s.keys : s.queries);
}

// ---- tiles of 16-bit elements: rows of 16-byte pieces, swizzled
constexpr int tilePieces(int dim) { return dim <= 32 ? 4 : dim <= 64 ? 8 : dim <= 128 ? 16 : 32; }

// Starts to copy rows of a strided operand; rows from `rows` on and channels from `dim` on become zeros. dim % 8 == 0.
template <int ROWS, int PIECES, int THREADS, class T>
__device__ __forceinline__ void loadTile(uint32_t tile, const T* global, int64_t stride, int rows, int dim, int thread) {
  static_assert(THREADS % PIECES == 0 && ROWS * PIECES % THREADS == 0, "whole passes");
  const int piece = thread % PIECES, row = thread / PIECES;
  const T* from = global + row * stride + piece * 8;
#pragma unroll
  for (int i = 0; i < ROWS; i += THREADS / PIECES) {
    const bool valid = row + i < rows && piece * 8 < dim;
    copyAsync16(tile + swizzled<PIECES>(row + i, piece), valid ? from + i * stride : global, valid);
  }
}

// What a lane adds to the address of a 16x16 block for ldmatrix4; blockAddress() shifts it to block (row, piece), row a multiple
// of 8, piece even.
//   rowsFirst: matrices (rows 0-7, piece 0), (rows 8-15, piece 0), then piece 1: an A fragment (m = rows), or, transposed, the
//              B fragments (k = rows) of two n-tiles
//   piecesFirst: matrices (rows 0-7, piece 0), (rows 0-7, piece 1), then rows 8-15: the B fragments (n = rows) of two n-tiles
template <int PIECES>
__device__ __forceinline__ uint32_t rowsFirst(int lane) {
  return swizzled<PIECES>(lane % 16, lane / 16);
}
template <int PIECES>
__device__ __forceinline__ uint32_t piecesFirst(int lane) {
  return swizzled<PIECES>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}
template <int PIECES>
__device__ __forceinline__ uint32_t blockAddress(uint32_t tile, uint32_t lanePart, int row, int piece) {
  return tile + uint32_t(row * PIECES * 16) + (lanePart ^ uint32_t(piece * 16));
}

// c (16 x 16) += a (16 x 16) b (16 x 16), b as ldmatrix4 left it.
template <class T>
__device__ __forceinline__ void mma161616(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
  const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
  mma16816<T>(c0, a, b0);
  mma16816<T>(c1, a, b1);
}

// The A fragment of two neighbouring C fragments.
template <class T>
__device__ __forceinline__ void packFragment(uint32_t (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
  a[0] = pack2<T>(c0[0], c0[1]);
  a[1] = pack2<T>(c0[2], c0[3]);
  a[2] = pack2<T>(c1[0], c1[1]);
  a[3] = pack2<T>(c1[2], c1[3]);
}

// Writes C fragments of a warp (16 rows, N columns) times a factor for each half into rows [row, row + 16) of a tile.
template <class T, int PIECES, int N>
__device__ __forceinline__ void stageRows(char* tile, int row, const float (&c)[N][4], float upper, float lower, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N; n++) {
    *reinterpret_cast<uint32_t*>(tile + swizzled<PIECES>(row + g, n) + t * 4) = pack2<T>(c[n][0] * upper, c[n][1] * upper);
    *reinterpret_cast<uint32_t*>(tile + swizzled<PIECES>(row + g + 8, n) + t * 4) = pack2<T>(c[n][2] * lower, c[n][3] * lower);
  }
}
// Copies `rows` rows of a tile from row `row` on to a strided result, by one warp.
template <class T, int PIECES>
__device__ __forceinline__ void storeRows(const char* tile, int row, T* global, int64_t stride, int rows, int dim, int lane) {
  for (int i = lane; i < rows * PIECES; i += 32) {
    const int r = i / PIECES, piece = i % PIECES;
    if (piece * 8 < dim)
      *reinterpret_cast<uint4*>(global + r * stride + piece * 8) = *reinterpret_cast<const uint4*>(tile + swizzled<PIECES>(row + r, piece));
  }
}

// ---- operands of a forward call, whichever op it is of
struct AttentionTensors {
  const MMTensorView *q, *k, *v, *o;
  float* lse;  // (B, H, Lq) or null
};
template <class T>
struct ForwardOperands {
  HeadView<const T> q, k, v;
  HeadView<T> o;
  float* lse;
};
template <class T>
ForwardOperands<T> forwardOperands(const AttentionTensors& x) {
  return {headView<const T>(*x.q), headView<const T>(*x.k), headView<const T>(*x.v), headView<T>(*x.o), x.lse};
}

// ---- operands of the backward kernels behind the first pass
template <class T>
struct BackwardOperands {
  HeadView<const T> q, k, v, dO;
  HeadView<T> dQ, dK, dV;     // null where not wanted
  const float *lse2, *delta;  // (B, H, Lq): lse in base 2, +inf for rows that saw no key
};

// Fills in what follows from the shapes; masks, starts and lengths are the caller's.
inline AttentionProblem attentionProblem(const MMTensorView& q, const MMTensorView& k, double scale, bool causal, int64_t left,
                                         int64_t right) {
  constexpr int64_t kFar = int64_t(1) << 29;  // farther than any sequence is long
  AttentionProblem p{};
  p.sequences = int(q.shape[0]), p.queries = int(q.shape[1]), p.keys = int(k.shape[1]);
  p.heads = int(q.shape[2]), p.kvHeads = int(k.shape[2]), p.group = p.heads / p.kvHeads, p.dim = int(q.shape[3]);
  p.left = left > kFar ? -1 : int(left);
  p.right = causal ? 0 : right > kFar ? -1 : int(right);
  p.scale = scale != 0 ? float(scale) : float(1 / __builtin_sqrt(double(p.dim)));
  p.scaleLog2 = p.scale * kLog2e;
  return p;
}

// What the tensor-core kernels ask of a problem besides 16-byte addresses.
inline bool mmaTakes(const AttentionProblem& p, int32_t dtype, int capability) {
  return dtype != MM_F32 && p.dim % 8 == 0 && p.scale > 0 && capability >= 80;
}
// What the kernels for Hopper ask.
inline bool hopperTakes(const AttentionProblem& p, int32_t dtype, int capability) {
  return mmaTakes(p, dtype, capability) && capability == 90 && p.dim > 32 && p.dim <= 128;
}
template <class F>
int32_t dispatchHalf(int32_t dtype, F&& f) {
  return dtype == MM_BF16 ? f(bf16{}) : f(f16{});
}

// attention_forward.cu: a tensor-core path where problem and addresses allow, Hopper's with `hopper`, else the general one.
int32_t attendBlocks(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x, bool hopper);
// attention_forward_hopper.cu, attention_backward_hopper.cu: false, and nothing done, where their copies cannot serve the operands.
bool runHopperForward(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x, int32_t& status);
template <class T>
bool runHopperBackward(const MMCall* c, const AttentionProblem& p, const BackwardOperands<T>& x, int32_t& status);
// attention_backward_ordered.cu: the same for all gradients at once; the bytes of its workspace, 0 where it does not serve.
uint64_t orderedBackwardWorkspace(const MMCall* c, const AttentionProblem& p);
bool runOrderedBackward(const MMCall* c, const AttentionProblem& p, int32_t& status);
// attention_kv_cache.cu: few queries over many keys.
bool splitsKeys(const MMCall* c, const AttentionProblem& p);
uint64_t splitKeysWorkspace(const MMCall* c, const AttentionProblem& p);
int32_t attendSplitKeys(const MMCall* c, const AttentionProblem& p, const AttentionTensors& x);

}  // namespace mm::cuda
