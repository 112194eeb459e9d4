// C = A B: cut into blocks of at most 256 x 512 that depend on the shape alone, one block a task of the pool.
//
// A block is one single-threaded call of oneDNN (cpu/onednn.h) where that is present and knows the dtype, and otherwise
// the portable kernel below: panels of B and blocks of A packed as f32, multiplied by simd/tile.h. oneDNN reaches its
// full speed from blocks of 128 x 128 on (230 GFLOP/s f32, 450 bf16 on one Zen 5 core, within 3 % of whole products).
// Products with few blocks and a long K (weight gradients) are cut along K too; the parts are added in order.
//
// Up to 16 rows of A against a transposed B (decoding) stream B once, as dot products: nothing is packed.
#include "cpu/gemm.h"

#include "cpu/onednn.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/tile.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kBlockRows = 256, kBlockCols = 512;  // the largest block
constexpr int64_t kSmallBlock = 128;                   // the smallest that large products are cut into for more tasks
constexpr int64_t kTasks = 8;                          // wanted at least, if the work allows
constexpr int64_t kTaskWork = 4 << 20;                 // multiplications below which a task is not cut further
constexpr int64_t kSplitK = 512;                       // the shortest parts that K is cut into
constexpr int64_t kTinyWork = 1 << 18;                 // multiplications of small matrices that one task gathers
constexpr int64_t kPackK = 256;                        // depth of the portable kernel's panels
constexpr int64_t kPanel = int64_t(kTileVectors) * VL;
constexpr int64_t kStreamRows = 16;                    // rows of A up to which B is streamed
constexpr int64_t kStreamBytes = 256 << 10;            // of B in one task then: waking a thread costs more than half a read
constexpr int64_t kReduceFloats = 16384;               // results in one task of the sum over K parts

int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t roundUp(int64_t a, int64_t b) { return ceilDiv(a, b) * b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t elementBytes(int32_t dtype) { return dtype == MM_F32 ? 4 : 2; }
const char* at(const GemmMatrix& x, int64_t element) {
  return static_cast<const char*>(x.data) + element * elementBytes(x.dtype);
}

struct Plan {
  bool stream = false;                 // few rows of A
  int64_t mb, nb, kc;                  // block
  int64_t tm, tn, tk = 1, batch = 1;   // how many of them; tk > 1: partial sums in the workspace
  int64_t accFloats() const { return mb * nb; }
  int64_t packFloats() const { return stream ? 0 : mb * kPackK + kPackK * roundUp(nb, kPanel); }
  int64_t workerFloats() const { return roundUp(accFloats() + packFloats() + nb, 16); }
};

// Blocks of equal size, rounded up to whole tiles.
void cut(int64_t n, int64_t most, int64_t& block, int64_t& count) {
  block = smaller(n, roundUp(ceilDiv(n, ceilDiv(n, most)), 16));
  count = ceilDiv(n, block);
}

Plan makePlan(const Gemm& g) {
  Plan p;
  for (int i = 0; i < g.batch_dims; i++) p.batch *= g.batch_shape[i];
  p.stream = g.m <= kStreamRows && g.b.transposed && !g.a.transposed && g.k > 0;
  p.kc = g.k;
  if (p.stream) {
    p.mb = g.m, p.tm = 1;
    cut(g.n, larger(16, smaller(2048, kStreamBytes / (g.k * elementBytes(g.b.dtype)))), p.nb, p.tn);
    return p;
  }
  int64_t rows = kBlockRows, cols = kBlockCols;
  const auto recut = [&] { cut(g.m, rows, p.mb, p.tm), cut(g.n, cols, p.nb, p.tn); };
  const auto wantsMore = [&] { return p.batch * p.tm * p.tn * p.tk < kTasks && p.mb * p.nb * p.kc >= kTaskWork; };
  const auto halve = [&](int64_t least) {
    while (wantsMore() && larger(p.mb, p.nb) > least) (p.nb > p.mb ? cols = p.nb / 2 : rows = p.mb / 2), recut();
  };
  recut();
  if (p.batch == 1 && g.k >= 2 * kSplitK && g.k >= larger(g.m, g.n) && wantsMore())
    cut(g.k, larger(kSplitK, ceilDiv(g.k, ceilDiv(kTasks, p.tm * p.tn))), p.kc, p.tk);
  halve(kBlockRows);
  halve(kSmallBlock);
  while (wantsMore() && p.nb > kSmallBlock / 2) cols = p.nb / 2, recut();  // fewer rows would pack B more often
  return p;
}

// ---- epilogue

MM_INLINE vf activate(vf x, Activation f) {
  if (f == Activation::Silu) return silu(x);
  if (f == Activation::Gelu) return 0.5f * x * (1.f + erf(x * 0.707106781f));
  return x;
}
MM_INLINE vf activationGradient(vf x, Activation f) {
  if (f == Activation::Silu) return siluGrad(x);
  if (f == Activation::Gelu) return 0.5f * (1.f + erf(x * 0.707106781f)) + x * 0.398942280f * exp(-0.5f * x * x);
  return splat(1.f);
}

// Finishes rows x cols sums at (row, col) of one matrix of the batch; `sums` may be C itself.
template <class T>
void finish(const Gemm& g, const float* sums, int64_t ld, int64_t row, int64_t col, int64_t rows, int64_t cols, int64_t offset,
            float* bias) {
  if (g.bias)
    dispatchFloat(g.bias_dtype, [&](auto t) { convertRows(1, cols, static_cast<const decltype(t)*>(g.bias) + col, 0, bias, 0); });
  T* c = static_cast<T*>(const_cast<void*>(g.c.data)) + offset + col;
  const T* other = g.other ? static_cast<const T*>(g.other) + offset + col : nullptr;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t start = (row + i) * g.c.ld;
    for (int64_t j = 0; j < cols; j += VL) {
      vf x = loadUpTo(sums + i * ld + j, cols - j);
      if (g.bias) x = x + loadUpTo(bias + j, cols - j);
      x = g.gradient ? activationGradient(x, g.activation) : activate(x, g.activation);
      if (other) {
        const vf o = loadUpTo(other + start + j, cols - j);
        x = g.gradient ? x * o : x + o;
      }
      storeUpTo(c + start + j, x, cols - j);
    }
  }
}

// ---- few rows of A: dot products with rows of B

// Lanes in any order, the same for every operand of a dot product: bf16 splits into even and odd elements without moving.
constexpr int64_t kStep = 2 * VL;
MM_INLINE void loadStep(const float* p, vf& a, vf& b) { a = load(p), b = load(p + VL); }
MM_INLINE void loadStep(const f16* p, vf& a, vf& b) { a = load(p), b = load(p + VL); }
MM_INLINE void loadStep(const bf16* p, vf& a, vf& b) {
  vu pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  a = (vf)(pairs << 16), b = (vf)(pairs & 0xffff0000u);
}

// y[i * ldy + j] = <x row i, w row j> for i < m, j < n. MR rows of x meet VL / MR rows of w, which stay in the first
// cache for all of x; missing rows repeat the last one.
template <class T, int MR>
void streamRows(int64_t m, int64_t n, int64_t k, const T* x, int64_t ldx, const T* w, int64_t ldw, float* y, int64_t ldy) {
  constexpr int R = VL / MR;
  for (int64_t j = 0; j < n; j += R) {
    const T* pw[R];
    for (int r = 0; r < R; r++) pw[r] = w + smaller(j + r, n - 1) * ldw;
    for (int64_t i = 0; i < m; i += MR) {
      const T* px[MR];
      for (int q = 0; q < MR; q++) px[q] = x + smaller(i + q, m - 1) * ldx;
      vf acc[VL] = {};
      int64_t p = 0;
      for (; p + kStep <= k; p += kStep) {
        vf xa[MR], xb[MR];
#pragma GCC unroll 4
        for (int q = 0; q < MR; q++) loadStep(px[q] + p, xa[q], xb[q]);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          vf wa, wb;
          loadStep(pw[r] + p, wa, wb);
#pragma GCC unroll 4
          for (int q = 0; q < MR; q++) acc[q * R + r] = fma(xb[q], wb, fma(xa[q], wa, acc[q * R + r]));
        }
      }
      for (; p < k; p += VL)
        for (int r = 0; r < R; r++) {
          const vf wa = loadUpTo(pw[r] + p, k - p);
          for (int q = 0; q < MR; q++) acc[q * R + r] = fma(loadUpTo(px[q] + p, k - p), wa, acc[q * R + r]);
        }
      float sums[VL];
      store(sums, sumLanes(acc));
      for (int64_t q = 0; q < MR && i + q < m; q++)
        for (int64_t r = 0; r < R && j + r < n; r++) y[(i + q) * ldy + j + r] = sums[q * R + r];
    }
  }
}
template <class T>
void streamBlock(int64_t m, int64_t n, int64_t k, const T* x, int64_t ldx, const T* w, int64_t ldw, float* y, int64_t ldy) {
  if (m == 1) streamRows<T, 1>(m, n, k, x, ldx, w, ldw, y, ldy);
  else if (m == 2) streamRows<T, 2>(m, n, k, x, ldx, w, ldw, y, ldy);
  else streamRows<T, 4>(m, n, k, x, ldx, w, ldw, y, ldy);
}

// ---- the portable block

// dst[j * ldd + i] = src[i * lds + j], i < rows, j < cols, as f32
template <class T>
void packTransposed(int64_t rows, int64_t cols, const T* src, int64_t lds, float* dst, int64_t ldd) {
  for (int64_t i = 0; i < rows; i += VL)
    for (int64_t j = 0; j < cols; j += VL) {
      if (i + VL > rows || j + VL > cols) {
        transpose(smaller(VL, rows - i), smaller(VL, cols - j), src + i * lds + j, lds, dst + j * ldd + i, ldd);
        continue;
      }
      vf r[VL];
#pragma GCC unroll 16
      for (int q = 0; q < VL; q++) r[q] = load(src + (i + q) * lds + j);
      transposeLanes<VL>(r);
#pragma GCC unroll 16
      for (int q = 0; q < VL; q++) store(dst + (j + q) * ldd + i, r[q]);
    }
}

// sums (m, n) with row length ld = (accumulate ? sums : 0) + A B; `a` and `b` point at the block's first elements
template <class T>
void portableBlock(const Gemm& g, int64_t m, int64_t n, int64_t k, const T* a, const T* b, float* sums, int64_t ld,
                   bool accumulate, float* pack) {
  float* packA = pack;
  float* packB = pack + m * kPackK;
  if (!k && !accumulate)
    for (int64_t i = 0; i < m; i++) std::memset(sums + i * ld, 0, size_t(n) * sizeof(float));
  for (int64_t p = 0; p < k; p += kPackK) {
    const int64_t depth = smaller(kPackK, k - p);
    const float* block = packA;
    int64_t rowStride = kPackK;
    if (g.a.transposed) packTransposed(depth, m, a + p * g.a.ld, g.a.ld, packA, kPackK);
    else if constexpr (sizeof(T) == 4) block = a + p, rowStride = g.a.ld;
    else convertRows(m, depth, a + p, g.a.ld, packA, kPackK);
    for (int64_t j = 0; j < n; j += kPanel) {
      const int64_t cols = smaller(kPanel, n - j);
      if (g.b.transposed) packTransposed(cols, depth, b + j * g.b.ld + p, g.b.ld, packB, kPanel);
      else convertRows(depth, cols, b + p * g.b.ld + j, g.b.ld, packB, kPanel);
      tileMatmul(m, cols, depth, block, rowStride, 1, packB, kPanel, sums + j, ld, accumulate || p > 0);
    }
  }
}

// ---- oneDNN's blocks: at most two heights, two widths and two depths occur

struct Compiled {
  OnednnMatmul* block[8] = {};
  bool ready;
  static int index(bool m, bool n, bool k) { return m | n << 1 | k << 2; }

  Compiled(bool wanted, const Gemm& g, const Plan& p, int64_t ldc, int32_t out) : ready(wanted && g.k) {
    const auto last = [](int64_t whole, int64_t block, int64_t count) { return whole - (count - 1) * block; };
    for (int i = 0; i < 8 && ready; i++) {
      const bool m = i & 1, n = i & 2, k = i & 4;
      if ((m || p.tm > 1) && (n || p.tn > 1) && (k || p.tk > 1)) {
        block[i] = onednnAcquire({m ? last(g.m, p.mb, p.tm) : p.mb, n ? last(g.n, p.nb, p.tn) : p.nb,
                                  k ? last(g.k, p.kc, p.tk) : p.kc, g.a.ld, g.b.ld, ldc, g.a.dtype, out, g.a.transposed,
                                  g.b.transposed, g.accumulate});
        ready = block[i];
      }
    }
  }
  ~Compiled() {
    for (OnednnMatmul* b : block) onednnRelease(b);
  }
};

template <class T>
int32_t run(Gemm g, const Plan& p, float* workspace) {
  const bool split = p.tk > 1, wide = g.c.dtype == MM_F32;
  if (g.accumulate && (split || p.stream)) g.accumulate = false, g.other = g.c.data;
  const bool epilogue = g.hasEpilogue();
  const int64_t workerFloats = p.workerFloats();
  float* parts = workspace + workerFloats * workerCount();
  // Where the sums of a block go: a part, C itself, or the worker's scratch.
  const bool inPlace = !split && wide && !p.stream;
  const int64_t ld = split ? g.n : inPlace ? g.c.ld : p.nb;
  // bf16 results without an epilogue are rounded by oneDNN, if it serves at all
  const bool tryDirect = !split && !epilogue && g.c.dtype == MM_BF16;
  const Compiled narrow(tryDirect && !p.stream, g, p, g.c.ld, MM_BF16);
  const Compiled sums(!narrow.ready && !p.stream, g, p, ld, MM_F32);
  bool failed = false;
  const auto fails = [&] { __atomic_store_n(&failed, true, __ATOMIC_RELAXED); };

  const int64_t grain = p.stream ? 1 : larger(1, kTinyWork / larger(1, p.mb * p.nb * p.kc));
  parallelFor(p.batch * p.tm * p.tn * p.tk, grain, [&](int64_t begin, int64_t end, int worker) {
    float* acc = workspace + worker * workerFloats;
    float* pack = acc + p.accFloats();
    float* bias = pack + p.packFloats();
    for (int64_t task = begin; task < end; task++) {
      const int64_t ik = task % p.tk, in = task / p.tk % p.tn, im = task / (p.tk * p.tn) % p.tm;
      const int64_t row = im * p.mb, col = in * p.nb, deep = ik * p.kc;
      const int64_t rows = smaller(p.mb, g.m - row), cols = smaller(p.nb, g.n - col), depth = smaller(p.kc, g.k - deep);
      int64_t oa = 0, ob = 0, oc = 0;
      for (int64_t i = g.batch_dims - 1, rest = task / (p.tk * p.tn * p.tm); i >= 0; rest /= g.batch_shape[i--]) {
        const int64_t index = rest % g.batch_shape[i];
        oa += index * g.a.batch_stride[i], ob += index * g.b.batch_stride[i], oc += index * g.c.batch_stride[i];
      }
      const T* a = reinterpret_cast<const T*>(at(g.a, oa + (g.a.transposed ? deep * g.a.ld + row : row * g.a.ld + deep)));
      const T* b = reinterpret_cast<const T*>(at(g.b, ob + (g.b.transposed ? col * g.b.ld + deep : deep * g.b.ld + col)));
      const int which = Compiled::index(im == p.tm - 1, in == p.tn - 1, ik == p.tk - 1);
      if (narrow.ready) {
        if (!onednnRun(narrow.block[which], a, b, const_cast<char*>(at(g.c, oc + row * g.c.ld + col)))) fails();
        continue;
      }
      float* target = split     ? parts + ik * g.m * g.n + row * g.n + col
                      : inPlace ? reinterpret_cast<float*>(const_cast<char*>(at(g.c, oc + row * g.c.ld + col)))
                                : acc;
      if (p.stream) streamBlock(rows, cols, depth, a, g.a.ld, b, g.b.ld, target, ld);
      else if (!sums.ready) portableBlock(g, rows, cols, depth, a, b, target, ld, g.accumulate, pack);
      else if (!onednnRun(sums.block[which], a, b, target)) fails();
      if (split || (inPlace && !epilogue)) continue;
      dispatchFloat(g.c.dtype, [&](auto t) { finish<decltype(t)>(g, target, ld, row, col, rows, cols, oc, bias); });
    }
  });

  if (split && !failed) {
    const int64_t grain = 1 + kReduceFloats / (g.n + 1);
    parallelFor(ceilDiv(g.m, grain), 1, [&](int64_t begin, int64_t end, int worker) {
      float* bias = workspace + worker * workerFloats;
      for (int64_t block = begin; block < end; block++) {
        const int64_t row = block * grain, rows = smaller(grain, g.m - row), count = rows * g.n;
        float* first = parts + row * g.n;
        for (int64_t j = 0; j < count; j += VL) {
          vf x = loadUpTo(first + j, count - j);
          for (int64_t ik = 1; ik < p.tk; ik++) x = x + loadUpTo(first + ik * g.m * g.n + j, count - j);
          storeUpTo(first + j, x, count - j);
        }
        for (int64_t col = 0; col < g.n; col += p.nb)
          dispatchFloat(g.c.dtype, [&](auto t) {
            finish<decltype(t)>(g, first + col, g.n, row, col, rows, smaller(p.nb, g.n - col), 0, bias);
          });
      }
    });
  }
  return failed ? MM_ERR_OUT_OF_MEMORY : MM_OK;
}

}  // namespace

uint64_t gemmWorkspace(const Gemm& g) {
  if (!g.m || !g.n) return 0;
  const Plan p = makePlan(g);
  return uint64_t(p.workerFloats() * workerCount() + (p.tk > 1 ? roundUp(p.tk * g.m * g.n, 16) : 0)) * sizeof(float);
}

int32_t gemm(const Gemm& g, void* workspace) {
  if (!g.m || !g.n) return MM_OK;
  const Plan p = makePlan(g);
  float* scratch = static_cast<float*>(workspace);
  return dispatchFloat(g.a.dtype, [&](auto t) { return run<decltype(t)>(g, p, scratch); });
}

// Rows are summed in blocks of this many whatever the number of threads.
constexpr int64_t kSumRows = 128;

uint64_t columnSumsWorkspace(int64_t rows, int64_t n) {
  return uint64_t(roundUp(ceilDiv(rows, kSumRows) * n, 16)) * sizeof(float);
}

void columnSums(const void* x, int32_t dtype, int64_t rows, int64_t n, float* sums, void* workspace) {
  float* partial = static_cast<float*>(workspace);
  const int64_t blocks = ceilDiv(rows, kSumRows);
  dispatchFloat(dtype, [&](auto t) {
    using T = decltype(t);
    parallelFor(blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; b++) {
        const T* first = static_cast<const T*>(x) + b * kSumRows * n;
        const int64_t count = smaller(kSumRows, rows - b * kSumRows);
        for (int64_t j = 0; j < n; j += 4 * VL) {
          vf acc[4] = {};
          if (j + 4 * VL <= n) {
            for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 4
              for (int v = 0; v < 4; v++) acc[v] = acc[v] + load(first + i * n + j + v * VL);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) store(partial + b * n + j + v * VL, acc[v]);
            continue;
          }
          for (int64_t q = j; q < n; q += VL) {
            vf s{};
            for (int64_t i = 0; i < count; i++) s = s + loadUpTo(first + i * n + q, n - q);
            storeUpTo(partial + b * n + q, s, n - q);
          }
        }
      }
    });
  });
  for (int64_t j = 0; j < n; j += VL) {
    vf s{};
    for (int64_t b = 0; b < blocks; b++) s = s + loadUpTo(partial + b * n + j, n - j);
    storeUpTo(sums + j, s, n - j);
  }
}

}  // namespace mm::cpu::MM_ISA
