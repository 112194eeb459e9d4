// selectiveScan: s_t = exp(d_t A) s_{t-1} + d_t B_t u_t, y_t = <C_t, s_t> + D u_t, out = y silu(z), per channel and state.
//
// Vectors run over VL channels of one group, so that B and C are broadcast scalars and nothing is summed across lanes;
// u, delta, z come as (time, lane) tiles of kChunk steps, transposed in registers from (B, D, L) or read directly from
// channel-last memory. Within a chunk the loop over states is outside: state and A stay in registers, and the
// exponentials of successive steps, which are nearly all the work, do not depend on each other.
// Backward: a first sweep stores the states at the chunks' borders, then the chunks are walked in reverse, each
// recomputing its states. dB and dC are sums over channels: VL steps' products are summed across lanes at once
// (sumLanes) into the partial result of a fixed set of channel blocks; these partials are added in order.
#include "ops/selective_scan.h"

#include "cpu/kernel.h"
#include "cpu/simd/lanes.h"

namespace mm::cpu::MM_ISA {
namespace {

constexpr int64_t kChunk = 64, kTile = kChunk * VL;
constexpr float kLog2e = 1.44269504f;

// 2^x for the decay: clamped to the normal range, NaN passes through (Cephes' polynomial).
MM_INLINE vf exp2(vf x) {
  x = select(x < splat(-126.f), splat(-126.f), x);
  x = select(x > splat(127.f), splat(127.f), x);
  const vf magic = splat(12583039.f), shifted = x + magic, r = x - (shifted - magic);
  vf p = splat(1.535336188319500e-4f);
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.f;
  return p * asFloat(asInt(shifted) << 23);  // the low bits of `shifted` hold the integer part, biased as exponents are
}

// The operands that forward and backward share (slots 0 to 7 agree).
struct Scan {
  int64_t batch, channels, length, state, groups, perGroup, blocks, chunks;
  const MMTensorView *u, *delta, *a, *b, *c, *d, *z, *bias;
  bool variesB, variesC, softplus;

  Scan(const MMCall* call, bool soft) : softplus(soft) {
    using namespace ops::selective_scan;
    u = &in(call, U), delta = &in(call, DELTA), a = &in(call, A), b = &in(call, B), c = &in(call, C);
    d = has(call, D) ? &in(call, D) : nullptr;
    z = has(call, Z) ? &in(call, Z) : nullptr;
    bias = has(call, DELTA_BIAS) ? &in(call, DELTA_BIAS) : nullptr;
    batch = u->shape[0], channels = u->shape[1], length = u->shape[2], state = a->shape[1];
    variesB = b->ndim > 2, variesC = c->ndim > 2;
    groups = b->ndim == 4 ? b->shape[1] : c->ndim == 4 ? c->shape[1] : 1;
    perGroup = channels / groups;
    blocks = (perGroup + VL - 1) / VL;  // of one group
    chunks = (length + kChunk - 1) / kChunk;
  }
};

float element(const MMTensorView& v, int64_t i) {
  return v.dtype == MM_F32 ? data<float>(v)[i] : v.dtype == MM_BF16 ? toF32(data<bf16>(v)[i]) : toF32(data<f16>(v)[i]);
}

// Channels d .. d + lanes of a (B, D, L) operand, steps t .. t + n, as tile[step * VL + lane]; absent lanes are zero.
template <class T>
void loadTile(const MMTensorView& v, int64_t b, int64_t d, int lanes, int64_t t, int64_t n, float* tile) {
  const int64_t sd = v.stride[1], st = v.stride[2];
  const T* p = data<T>(v) + b * v.stride[0] + d * sd + t * st;
  if (sd == 1)
    for (int64_t i = 0; i < n; i++) store(tile + i * VL, loadUpTo(p + i * st, lanes));
  else if (st == 1)
    for (int64_t i = 0; i < n; i += VL) {
      vf r[VL];
#pragma GCC unroll 16
      for (int k = 0; k < VL; k++) r[k] = k < lanes ? loadUpTo(p + k * sd + i, n - i) : vf{};
      transposeLanes<VL>(r);
      for (int k = 0; k < VL && i + k < n; k++) store(tile + (i + k) * VL, r[k]);
    }
  else
    for (int64_t i = 0; i < n; i++)
      for (int k = 0; k < VL; k++) tile[i * VL + k] = k < lanes ? toF32(p[k * sd + i * st]) : 0.f;
}
template <class T>
void storeTile(const float* tile, const MMTensorView& v, int64_t b, int64_t d, int lanes, int64_t t, int64_t n) {
  const int64_t sd = v.stride[1], st = v.stride[2];
  T* p = data<T>(v) + b * v.stride[0] + d * sd + t * st;
  if (sd == 1)
    for (int64_t i = 0; i < n; i++) storeUpTo(p + i * st, load(tile + i * VL), lanes);
  else if (st == 1)
    for (int64_t i = 0; i < n; i += VL) {
      vf r[VL];
#pragma GCC unroll 16
      for (int k = 0; k < VL; k++) r[k] = i + k < n ? load(tile + (i + k) * VL) : vf{};
      transposeLanes<VL>(r);
      for (int k = 0; k < lanes; k++) storeUpTo(p + k * sd + i, r[k], n - i);
    }
  else
    for (int64_t i = 0; i < n; i++)
      for (int k = 0; k < lanes; k++) p[k * sd + i * st] = fromF32<T>(tile[i * VL + k]);
}

// Scratch of one worker: one block of channels.
struct Block {
  // (N, VL): A log2(e), constant B and C, the states; (N, kChunk): varying B and C
  float *a, *constB, *constC, *s, *timeB, *timeC;
  // tiles: raw step, step, u, step * u, gate, y
  float *raw, *step, *u, *stepU, *z, *y;

  static int64_t floats(int64_t state) { return 4 * state * VL + 2 * state * kChunk + 6 * kTile; }
  Block(float* p, int64_t state) {
    for (float** q : {&a, &constB, &constC, &s}) *q = p, p += state * VL;
    for (float** q : {&timeB, &timeC}) *q = p, p += state * kChunk;
    for (float** q : {&raw, &step, &u, &stepU, &z, &y}) *q = p, p += kTile;
  }
};

// Which channels a block covers.
struct Place {
  int64_t batch, group, channel;
  int lanes;
};
Place placeOf(const Scan& v, int64_t batch, int64_t group, int64_t block) {
  const int64_t first = block * VL, left = v.perGroup - first;
  return {batch, group, group * v.perGroup + first, int(left < VL ? left : VL)};
}

MM_INLINE vf channelVector(const MMTensorView* v, const Place& p) {
  float lanes[VL] = {};
  for (int k = 0; v && k < p.lanes; k++) lanes[k] = element(*v, p.channel + k);
  return load(lanes);
}
// rows (D, N) as [n * VL + lane]
void loadStates(const MMTensorView& v, int64_t offset, const Place& p, int64_t state, float factor, float* to) {
  for (int64_t n = 0; n < state; n++)
    for (int k = 0; k < VL; k++) to[n * VL + k] = k < p.lanes ? element(v, offset + (p.channel + k) * state + n) * factor : 0.f;
}
void storeStates(const float* from, int64_t offset, const Place& p, int64_t state, float* to) {
  for (int k = 0; k < p.lanes; k++)
    for (int64_t n = 0; n < state; n++) to[offset + (p.channel + k) * state + n] = from[n * VL + k];
}

void beginBlock(const Scan& v, const Place& p, const Block& w) {
  loadStates(*v.a, 0, p, v.state, kLog2e, w.a);
  if (!v.variesB) loadStates(*v.b, 0, p, v.state, 1.f, w.constB);
  if (!v.variesC) loadStates(*v.c, 0, p, v.state, 1.f, w.constC);
  std::memset(w.s, 0, size_t(v.state) * VL * sizeof(float));
}

template <class T>
void loadTime(const MMTensorView& v, const Scan& scan, const Place& p, int64_t t, int64_t n, float* to) {
  for (int64_t k = 0; k < scan.state; k++) {
    const T* row = data<T>(v) + ((p.batch * scan.groups + p.group) * scan.state + k) * scan.length + t;
    for (int64_t j = 0; j < n; j += VL) storeUpTo(to + k * kChunk + j, loadUpTo(row + j, n - j), n - j);
  }
}

// The operands of steps t .. t + n, except the gate.
template <class T>
void loadChunk(const Scan& v, const Place& p, const Block& w, int64_t t, int64_t n) {
  loadTile<T>(*v.u, p.batch, p.channel, p.lanes, t, n, w.u);
  loadTile<T>(*v.delta, p.batch, p.channel, p.lanes, t, n, w.raw);
  const vf bias = channelVector(v.bias, p);
  for (int64_t i = 0; i < n; i++) {
    const vf raw = load(w.raw + i * VL) + bias, step = v.softplus ? softplus(raw) : raw;
    store(w.raw + i * VL, raw);
    store(w.step + i * VL, step);
    store(w.stepU + i * VL, step * load(w.u + i * VL));
  }
  if (v.variesB) loadTime<T>(*v.b, v, p, t, n, w.timeB);
  if (v.variesC) loadTime<T>(*v.c, v, p, t, n, w.timeC);
}

// Advances the states through a chunk; with OUTPUT adds <C, s> to y.
template <bool VARIES_B, bool VARIES_C, bool OUTPUT>
void advance(const Block& w, int64_t states, int64_t n) {
  for (int64_t k = 0; k < states; k++) {
    const vf a = load(w.a + k * VL), constB = VARIES_B ? vf{} : load(w.constB + k * VL),
        constC = VARIES_C ? vf{} : load(w.constC + k * VL);
    const float *timeB = w.timeB + k * kChunk, *timeC = w.timeC + k * kChunk;
    vf s = load(w.s + k * VL);
    for (int64_t i = 0; i < n; i++) {
      const vf decay = exp2(load(w.step + i * VL) * a);
      s = fma(decay, s, load(w.stepU + i * VL) * (VARIES_B ? splat(timeB[i]) : constB));
      if (OUTPUT) store(w.y + i * VL, fma(VARIES_C ? splat(timeC[i]) : constC, s, load(w.y + i * VL)));
    }
    store(w.s + k * VL, s);
  }
}

template <class F>
void dispatchVaries(const Scan& v, F&& f) {
  if (v.variesB) v.variesC ? f(std::true_type{}, std::true_type{}) : f(std::true_type{}, std::false_type{});
  else v.variesC ? f(std::false_type{}, std::true_type{}) : f(std::false_type{}, std::false_type{});
}

uint64_t scanWorkspace(const MMCall* c) { return uint64_t(workerCount()) * Block::floats(Scan(c, false).state) * sizeof(float); }

int32_t selectiveScan(const MMCall* c) {
  using namespace ops::selective_scan;
  const Scan v(c, attrs<Attrs>(c).deltaSoftplus);
  const auto& y = out(c, OUT);
  float* lastState = data<float>(out(c, LAST_STATE));
  dispatchFloat(v.u->dtype, [&](auto t) {
    using T = decltype(t);
    dispatchVaries(v, [&](auto variesB, auto variesC) {
      parallelFor(v.batch * v.groups * v.blocks, 1, [&](int64_t first, int64_t last, int worker) {
        const Block w(static_cast<float*>(c->workspace) + worker * Block::floats(v.state), v.state);
        for (int64_t item = first; item < last; item++) {
          const Place p = placeOf(v, item / (v.groups * v.blocks), item / v.blocks % v.groups, item % v.blocks);
          beginBlock(v, p, w);
          const vf skip = channelVector(v.d, p);
          for (int64_t at = 0; at < v.length; at += kChunk) {
            const int64_t n = v.length - at < kChunk ? v.length - at : kChunk;
            loadChunk<T>(v, p, w, at, n);
            for (int64_t i = 0; i < n; i++) store(w.y + i * VL, skip * load(w.u + i * VL));
            advance<decltype(variesB)::value, decltype(variesC)::value, true>(w, v.state, n);
            if (v.z) {
              loadTile<T>(*v.z, p.batch, p.channel, p.lanes, at, n, w.z);
              for (int64_t i = 0; i < n; i++) store(w.y + i * VL, load(w.y + i * VL) * silu(load(w.z + i * VL)));
            }
            storeTile<T>(w.y, y, p.batch, p.channel, p.lanes, at, n);
          }
          storeStates(w.s, p.batch * v.channels * v.state, p, v.state, lastState);
        }
      });
    });
  });
  return MM_OK;
}

// ---- backward

// Channel blocks of a group are shared out to this many sets; depends on shapes alone.
int64_t setsOf(const Scan& v) {
  const int64_t many = v.batch * v.groups, wanted = many >= 32 ? 1 : 32 / (many > 0 ? many : 1);
  return v.blocks < wanted ? v.blocks : wanted;
}

// Partial gradients: dB, dC of every set (batch, group, set, N, L) or, when constant, of every batch (batch, N, D);
// dA (batch, N, D); dD and dDeltaBias (batch, D).
struct Partials {
  float *b, *c, *a, *d, *bias, *workers;
  int64_t sets, perWorker;
  uint64_t bytes;

  Partials(const Scan& v, void* workspace) {
    sets = setsOf(v);
    const int64_t varying = v.batch * v.groups * sets * v.state * v.length, constant = v.batch * v.state * v.channels;
    // a worker: the block, tiles of dOut, d(step u), d(step), a chunk's decays, states, products, dStates, dA, dB, dC, borders
    perWorker = Block::floats(v.state) + 7 * kTile + VL + 4 * v.state * VL + v.chunks * v.state * VL;
    float* p = static_cast<float*>(workspace);
    workers = p, p += workerCount() * perWorker;
    b = p, p += v.variesB ? varying : constant;
    c = p, p += v.variesC ? varying : constant;
    a = p, p += constant;
    d = p, p += v.batch * v.channels;
    bias = p, p += v.batch * v.channels;
    bytes = uint64_t(p - static_cast<float*>(workspace)) * sizeof(float);
  }
};

struct BackwardBlock : Block {
  float *dy, *dStepU, *dStep, *decays, *states, *productB, *productC, *ds, *da, *db, *dc, *borders;

  BackwardBlock(float* p, const Scan& v) : Block(p, v.state) {
    p += Block::floats(v.state);
    for (float** q : {&dy, &dStepU, &dStep, &decays}) *q = p, p += kTile;
    states = p, p += kTile + VL;  // one step more: the state before the chunk
    for (float** q : {&productB, &productC}) *q = p, p += kTile;
    for (float** q : {&ds, &da, &db, &dc}) *q = p, p += v.state * VL;
    borders = p;
  }
};

// to[i] += sum over the lanes of tile[i], i < n
void addLaneSums(const float* tile, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += VL) {
    vf r[VL];
#pragma GCC unroll 16
    for (int k = 0; k < VL; k++) r[k] = i + k < n ? load(tile + (i + k) * VL) : vf{};
    storeUpTo(to + i, loadUpTo(to + i, n - i) + sumLanes(r), n - i);
  }
}

// One chunk in reverse: needs the state before it in w.s, fills dStepU, dStep (through the decay) and, for the gate, y.
template <bool VARIES_B, bool VARIES_C>
void retreat(const BackwardBlock& w, int64_t states, int64_t n, bool wantY, float* dB, float* dC, int64_t length) {
  for (int64_t k = 0; k < states; k++) {
    const vf a = load(w.a + k * VL), constB = VARIES_B ? vf{} : load(w.constB + k * VL),
        constC = VARIES_C ? vf{} : load(w.constC + k * VL);
    const float *timeB = w.timeB + k * kChunk, *timeC = w.timeC + k * kChunk;
    vf s = load(w.s + k * VL);
    store(w.states, s);
    for (int64_t i = 0; i < n; i++) {
      const vf decay = exp2(load(w.step + i * VL) * a);
      s = fma(decay, s, load(w.stepU + i * VL) * (VARIES_B ? splat(timeB[i]) : constB));
      store(w.decays + i * VL, decay);
      store(w.states + (i + 1) * VL, s);
    }
    if (wantY)
      for (int64_t i = 0; i < n; i++)
        store(w.y + i * VL, fma(VARIES_C ? splat(timeC[i]) : constC, load(w.states + (i + 1) * VL), load(w.y + i * VL)));
    vf ds = load(w.ds + k * VL), da = load(w.da + k * VL), sumB = VARIES_B ? vf{} : load(w.db + k * VL),
        sumC = VARIES_C ? vf{} : load(w.dc + k * VL);
    const vf natural = a * 0.693147181f;  // A itself
    for (int64_t i = n - 1; i >= 0; i--) {
      const vf dy = load(w.dy + i * VL);
      ds = fma(dy, VARIES_C ? splat(timeC[i]) : constC, ds);
      const vf forC = dy * load(w.states + (i + 1) * VL), forB = ds * load(w.stepU + i * VL);
      if (VARIES_C) store(w.productC + i * VL, forC);
      else sumC += forC;
      if (VARIES_B) store(w.productB + i * VL, forB);
      else sumB += forB;
      store(w.dStepU + i * VL, fma(ds, VARIES_B ? splat(timeB[i]) : constB, load(w.dStepU + i * VL)));
      ds *= load(w.decays + i * VL);
      const vf dDecay = ds * load(w.states + i * VL);  // times the decay already: d exp(step A) = exp(step A) d(step A)
      da = fma(dDecay, load(w.step + i * VL), da);
      store(w.dStep + i * VL, fma(dDecay, natural, load(w.dStep + i * VL)));
    }
    store(w.ds + k * VL, ds);
    store(w.da + k * VL, da);
    if (VARIES_B) addLaneSums(w.productB, n, dB + k * length);
    else store(w.db + k * VL, sumB);
    if (VARIES_C) addLaneSums(w.productC, n, dC + k * length);
    else store(w.dc + k * VL, sumC);
  }
}

// (N, VL) into rows (N, D) of one batch
void storeColumns(const float* from, const Place& p, const Scan& v, float* to) {
  for (int64_t n = 0; n < v.state; n++) storeUpTo(to + (p.batch * v.state + n) * v.channels + p.channel, load(from + n * VL),
      p.lanes);
}

template <class T, bool VARIES_B, bool VARIES_C>
void backwardBlock(const MMCall* c, const Scan& v, const Place& p, const BackwardBlock& w, const Partials& partial, float* dB,
    float* dC) {
  using namespace ops::selective_scan_bwd;
  beginBlock(v, p, w);
  const int64_t stateFloats = v.state * VL;
  for (int64_t chunk = 0; chunk + 1 < v.chunks; chunk++) {  // the states before every chunk
    std::memcpy(w.borders + chunk * stateFloats, w.s, size_t(stateFloats) * sizeof(float));
    loadChunk<T>(v, p, w, chunk * kChunk, kChunk);
    advance<VARIES_B, VARIES_C, false>(w, v.state, kChunk);
  }
  if (v.chunks) std::memcpy(w.borders + (v.chunks - 1) * stateFloats, w.s, size_t(stateFloats) * sizeof(float));
  if (has(c, DLAST_STATE)) loadStates(in(c, DLAST_STATE), p.batch * v.channels * v.state, p, v.state, 1.f, w.ds);
  else std::memset(w.ds, 0, size_t(stateFloats) * sizeof(float));
  for (float* q : {w.da, w.db, w.dc}) std::memset(q, 0, size_t(stateFloats) * sizeof(float));

  const vf skip = channelVector(v.d, p);
  vf dSkip{}, dBias{};
  for (int64_t chunk = v.chunks - 1; chunk >= 0; chunk--) {
    const int64_t at = chunk * kChunk, n = v.length - at < kChunk ? v.length - at : kChunk;
    loadChunk<T>(v, p, w, at, n);
    std::memcpy(w.s, w.borders + chunk * stateFloats, size_t(stateFloats) * sizeof(float));
    loadTile<T>(in(c, DOUT), p.batch, p.channel, p.lanes, at, n, w.dy);
    const bool wantZ = hasOut(c, DZ);
    if (v.z) {
      loadTile<T>(*v.z, p.batch, p.channel, p.lanes, at, n, w.z);
      for (int64_t i = 0; i < n; i++) {
        const vf z = load(w.z + i * VL), up = load(w.dy + i * VL);
        if (wantZ) store(w.z + i * VL, up * siluGrad(z));  // y is the other factor
        store(w.dy + i * VL, up * silu(z));
      }
    }
    for (int64_t i = 0; i < n; i++) {
      store(w.dStepU + i * VL, vf{});
      store(w.dStep + i * VL, vf{});
      store(w.y + i * VL, skip * load(w.u + i * VL));
    }
    retreat<VARIES_B, VARIES_C>(w, v.state, n, wantZ, VARIES_B ? dB + at : nullptr, VARIES_C ? dC + at : nullptr, v.length);
    for (int64_t i = 0; i < n; i++) {
      const vf u = load(w.u + i * VL), dy = load(w.dy + i * VL), dStepU = load(w.dStepU + i * VL);
      vf dStep = fma(dStepU, u, load(w.dStep + i * VL));
      if (v.softplus) dStep *= sigmoid(load(w.raw + i * VL));
      dBias += dStep;
      dSkip = fma(dy, u, dSkip);
      store(w.dStep + i * VL, dStep);
      store(w.dStepU + i * VL, fma(dStepU, load(w.step + i * VL), dy * skip));  // dU
      if (wantZ) store(w.z + i * VL, load(w.z + i * VL) * load(w.y + i * VL));
    }
    if (hasOut(c, DU)) storeTile<T>(w.dStepU, out(c, DU), p.batch, p.channel, p.lanes, at, n);
    if (hasOut(c, DDELTA)) storeTile<T>(w.dStep, out(c, DDELTA), p.batch, p.channel, p.lanes, at, n);
    if (wantZ) storeTile<T>(w.z, out(c, DZ), p.batch, p.channel, p.lanes, at, n);
  }
  storeColumns(w.da, p, v, partial.a);
  if (!VARIES_B) storeColumns(w.db, p, v, partial.b);
  if (!VARIES_C) storeColumns(w.dc, p, v, partial.c);
  storeUpTo(partial.d + p.batch * v.channels + p.channel, dSkip, p.lanes);
  storeUpTo(partial.bias + p.batch * v.channels + p.channel, dBias, p.lanes);
}

// (batch, N, D) summed over the batch into (D, N); N = 1 sums vectors of channels
void sumConstant(const float* partial, int64_t batch, int64_t state, int64_t channels, const MMTensorView& to) {
  parallelFor(channels, 256, [&](int64_t first, int64_t last, int) {
    for (int64_t d = first; d < last; d++)
      for (int64_t n = 0; n < state; n++) {
        float total = 0.f;
        for (int64_t b = 0; b < batch; b++) total += partial[(b * state + n) * channels + d];
        data<float>(to)[d * state + n] = total;
      }
  });
}

// (batch, group, set, N, L) summed over the sets
template <class T>
void sumVarying(const float* partial, int64_t outer, int64_t sets, int64_t inner, const MMTensorView& to) {
  constexpr int64_t kBlock = 4096;
  const int64_t blocks = (inner + kBlock - 1) / kBlock;
  parallelFor(outer * blocks, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t item = first; item < last; item++) {
      const int64_t o = item / blocks, end = (item % blocks + 1) * kBlock < inner ? (item % blocks + 1) * kBlock : inner;
      for (int64_t j = item % blocks * kBlock; j < end; j += VL) {
        vf total{};
        for (int64_t s = 0; s < sets; s++) total += loadUpTo(partial + (o * sets + s) * inner + j, end - j);
        storeUpTo(data<T>(to) + o * inner + j, total, end - j);
      }
    }
  });
}

uint64_t scanBackwardWorkspace(const MMCall* c) { return Partials(Scan(c, false), nullptr).bytes; }

int32_t selectiveScanBackward(const MMCall* c) {
  using namespace ops::selective_scan_bwd;
  const Scan v(c, attrs<Attrs>(c).deltaSoftplus);
  const Partials partial(v, c->workspace);
  dispatchFloat(v.u->dtype, [&](auto t) {
    using T = decltype(t);
    dispatchVaries(v, [&](auto variesB, auto variesC) {
      parallelFor(v.batch * v.groups * partial.sets, 1, [&](int64_t first, int64_t last, int worker) {
        const BackwardBlock w(partial.workers + worker * partial.perWorker, v);
        for (int64_t item = first; item < last; item++) {
          const int64_t set = item % partial.sets, group = item / partial.sets % v.groups,
              batch = item / (partial.sets * v.groups);
          const int64_t size = v.state * v.length;
          float *dB = partial.b + item * size, *dC = partial.c + item * size;
          if (v.variesB) std::memset(dB, 0, size_t(size) * sizeof(float));
          if (v.variesC) std::memset(dC, 0, size_t(size) * sizeof(float));
          for (int64_t block = set * v.blocks / partial.sets; block < (set + 1) * v.blocks / partial.sets; block++)
            backwardBlock<T, decltype(variesB)::value, decltype(variesC)::value>(c, v, placeOf(v, batch, group, block), w,
                partial, dB, dC);
        }
      });
    });
    if (hasOut(c, DA)) sumConstant(partial.a, v.batch, v.state, v.channels, out(c, DA));
    if (hasOut(c, DD)) sumConstant(partial.d, v.batch, 1, v.channels, out(c, DD));
    if (hasOut(c, DDELTA_BIAS)) sumConstant(partial.bias, v.batch, 1, v.channels, out(c, DDELTA_BIAS));
    const int64_t outer = v.batch * v.groups, inner = v.state * v.length;
    if (hasOut(c, DB)) v.variesB ? sumVarying<T>(partial.b, outer, partial.sets, inner, out(c, DB))
        : sumConstant(partial.b, v.batch, v.state, v.channels, out(c, DB));
    if (hasOut(c, DC)) v.variesC ? sumVarying<T>(partial.c, outer, partial.sets, inner, out(c, DC))
        : sumConstant(partial.c, v.batch, v.state, v.channels, out(c, DC));
  });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(selective_scan, {"selectiveScan", "channel blocks", nullptr, scanWorkspace, selectiveScan},
               {"selectiveScanBackward", "channel blocks", nullptr, scanBackwardWorkspace, selectiveScanBackward})
