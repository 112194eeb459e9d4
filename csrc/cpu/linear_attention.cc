// linearAttention, simpleGla, gla and their gradients on the chunk engine (chunk_scan.h describes it), which here runs
// without decay, with one per head, and with one per key channel.
//
// normalize divides by den_t = scale <q_t, z_t> + 1e-10 with z_t = sum_{s<=t} k_s. A vector a step is next to nothing
// beside the states' products, so den, its gradient and the sums that the gradients of q and k need from other chunks
// come from walks along the sequence before the engine runs: with e_t = d den_t = -<dO_t, o_t> / den_t,
// dq_t += scale e_t z_t and dk_s += scale sum_{t>=s} e_t q_t; what lies within a chunk is added to R there.
#include "ops/linear_attention.h"

#include <cmath>

#include "cpu/chunk_scan.h"
#include "ops/gla.h"
#include "ops/simple_gla.h"

namespace mm::cpu::MM_ISA {
namespace {

using namespace chunk_scan;
using ops::linear_attention::K;
using ops::linear_attention::Q;
using ops::linear_attention::V;

Scan describe(const MMCall* c, double scale, int initial, int cu) {
  const auto &q = in(c, Q), &v = in(c, V);
  Scan s;
  s.batch = q.shape[0], s.length = q.shape[1], s.heads = s.groups = q.shape[2], s.n = q.shape[3], s.p = v.shape[3];
  setSizes(s, has(c, cu) ? in(c, cu).shape[0] - 1 : -1);
  s.q = operand(q), s.k = operand(in(c, K)), s.v = operand(v);
  s.scale = scale != 0 ? float(scale) : 1.f / std::sqrt(float(s.n));
  if (has(c, initial)) s.initial = data<float>(in(c, initial));
  if (s.packed) s.cu = data<int32_t>(in(c, cu));
  return s;
}
Gradient describeGradient(const MMCall* c, int dO, int dFinal) {
  using namespace ops::linear_attention_bwd;
  Gradient g;
  g.dy = optionalOperand(c, dO);
  if (has(c, dFinal)) g.dFinal = data<float>(in(c, dFinal));
  g.dq = optionalResult(c, DQ), g.dk = optionalResult(c, DK), g.dv = optionalResult(c, DV);
  return g;
}

// ---- normalize

struct Norm {
  float *den, *dden;       // (B, T, H)
  float *before, *behind;  // by chunk and head
  float* walk;             // nv, by worker
};
Norm normPlan(Carver& c, const Scan& s, bool gradient) {
  Norm n{};
  const int64_t steps = s.batch * s.length * s.heads, states = s.chunks * s.heads * s.nv;
  n.den = c.take<float>(steps);
  n.walk = c.take<float>(workerCount() * s.nv);
  if (gradient) n.dden = c.take<float>(steps), n.before = c.take<float>(states), n.behind = c.take<float>(states);
  return n;
}
template <class T>
void normalizers(const Scan& s, const Norm& norm) {
  parallelFor(s.pairs(), 1, [&](int64_t begin, int64_t end, int worker) {
    float* z = norm.walk + worker * s.nv;
    for (int64_t pair = begin; pair < end; pair++) {
      const Sequence& seq = s.sequence[pair / s.heads];
      const int64_t head = pair % s.heads;
      std::memset(z, 0, size_t(s.nv) * sizeof(float));
      for (int64_t t = 0; t < seq.length; t++) {
        if (norm.before && t % kChunk == 0)
          std::memcpy(norm.before + ((seq.chunk + t / kChunk) * s.heads + head) * s.nv, z, size_t(s.nv) * sizeof(float));
        const T *q = s.q.at<const T>(seq.batch, seq.start + t, head), *k = s.k.at<const T>(seq.batch, seq.start + t, head);
        vf acc{};
        for (int64_t j = 0; j < s.n; j += VL) {
          const vf sum = load(z + j) + loadUpTo(k + j, s.n - j);
          store(z + j, sum);
          acc = fma(loadUpTo(q + j, s.n - j), sum, acc);
        }
        norm.den[(seq.batch * s.length + seq.start + t) * s.heads + head] = s.scale * sum(acc) + 1e-10f;
      }
    }
  });
}
template <class T>
void normalizerGradients(const Scan& s, const Gradient& g, const Operand& o, const Norm& norm) {
  parallelFor(s.pairs(), 1, [&](int64_t begin, int64_t end, int worker) {
    float* e = norm.walk + worker * s.nv;
    for (int64_t pair = begin; pair < end; pair++) {
      const Sequence& seq = s.sequence[pair / s.heads];
      const int64_t head = pair % s.heads;
      std::memset(e, 0, size_t(s.nv) * sizeof(float));
      for (int64_t t = seq.length - 1; t >= 0; t--) {
        if (t % kChunk == kChunk - 1 || t == seq.length - 1)
          std::memcpy(norm.behind + ((seq.chunk + t / kChunk) * s.heads + head) * s.nv, e, size_t(s.nv) * sizeof(float));
        const int64_t step = (seq.batch * s.length + seq.start + t) * s.heads + head;
        vf acc{};
        if (g.dy.data) {
          const T *dy = g.dy.at<const T>(seq.batch, seq.start + t, head), *y = o.at<const T>(seq.batch, seq.start + t, head);
          for (int64_t j = 0; j < s.p; j += VL) acc = fma(loadUpTo(dy + j, s.p - j), loadUpTo(y + j, s.p - j), acc);
        }
        const float d = -sum(acc) / norm.den[step];
        norm.dden[step] = d;
        const T* q = s.q.at<const T>(seq.batch, seq.start + t, head);
        for (int64_t j = 0; j < s.n; j += VL) store(e + j, fma(splat(d * s.scale), loadUpTo(q + j, s.n - j), load(e + j)));
      }
    }
  });
}

// ---- linearAttention

uint64_t linearAttentionWorkspace(const MMCall* c) {
  using namespace ops::linear_attention;
  Scan s = describe(c, 0, INITIALSTATE, CUSEQLENS);
  Carver carver{nullptr};
  forwardPlan<Decay::None>(carver, s);
  if (attrs<Attrs>(c).normalize) normPlan(carver, s, false);
  return carver.used;
}
int32_t linearAttention(const MMCall* c) {
  using namespace ops::linear_attention;
  const bool normalize = attrs<Attrs>(c).normalize;
  Scan s = describe(c, attrs<Attrs>(c).scale, INITIALSTATE, CUSEQLENS);
  s.y = operand(out(c, O)), s.final = data<float>(out(c, FINALSTATE));
  Carver carver{static_cast<char*>(c->workspace)};
  const Plan plan = forwardPlan<Decay::None>(carver, s);
  const Norm norm = normalize ? normPlan(carver, s, false) : Norm{};
  if (!layOut(s)) return fail(c, "%s", kBadLengths);
  s.den = norm.den;
  dispatchFloat(in(c, Q).dtype, [&](auto t) {
    using T = decltype(t);
    if (normalize) normalizers<T>(s, norm);
    forward<T, Decay::None>(s, plan);
  });
  return MM_OK;
}

uint64_t linearAttentionBackwardWorkspace(const MMCall* c) {
  using namespace ops::linear_attention_bwd;
  Scan s = describe(c, 0, INITIALSTATE, CUSEQLENS);
  Gradient g;
  Carver carver{nullptr};
  backwardPlan<Decay::None>(carver, s, g, false);
  if (attrs<Attrs>(c).normalize) normPlan(carver, s, true);
  return carver.used;
}
int32_t linearAttentionBackward(const MMCall* c) {
  using namespace ops::linear_attention_bwd;
  const bool normalize = attrs<Attrs>(c).normalize;
  Scan s = describe(c, attrs<Attrs>(c).scale, INITIALSTATE, CUSEQLENS);
  Gradient g = describeGradient(c, DO, DFINALSTATE);
  g.dInitial = floatResult(c, DINITIALSTATE);
  Carver carver{static_cast<char*>(c->workspace)};
  const Plan plan = backwardPlan<Decay::None>(carver, s, g, false);
  const Norm norm = normalize ? normPlan(carver, s, true) : Norm{};
  if (!layOut(s)) return fail(c, "%s", kBadLengths);
  s.den = norm.den, g.dden = norm.dden, g.before = norm.before, g.behind = norm.behind;
  dispatchFloat(in(c, Q).dtype, [&](auto t) {
    using T = decltype(t);
    if (normalize) {
      normalizers<T>(s, norm);
      normalizerGradients<T>(s, g, operand(in(c, O)), norm);
    }
    backward<T, Decay::None>(s, g, plan);
  });
  return MM_OK;
}

// ---- simpleGla and gla: the decay stands in the same slot of both

template <Decay KIND>
Scan describeGated(const MMCall* c, double scale) {
  using namespace ops::simple_gla;
  Scan s = describe(c, scale, INITIALSTATE, CUSEQLENS);
  (KIND == Decay::Head ? s.step : s.gate) = operand(in(c, G));
  return s;
}
template <Decay KIND>
uint64_t gatedWorkspace(const MMCall* c) {
  Scan s = describeGated<KIND>(c, 0);
  Carver carver{nullptr};
  forwardPlan<KIND>(carver, s);
  return carver.used;
}
template <Decay KIND>
int32_t gated(const MMCall* c) {
  using namespace ops::simple_gla;
  Scan s = describeGated<KIND>(c, attrs<Attrs>(c).scale);
  s.y = operand(out(c, O)), s.final = data<float>(out(c, FINALSTATE));
  Carver carver{static_cast<char*>(c->workspace)};
  const Plan plan = forwardPlan<KIND>(carver, s);
  if (!layOut(s)) return fail(c, "%s", kBadLengths);
  dispatchFloat(in(c, Q).dtype, [&](auto t) { forward<decltype(t), KIND>(s, plan); });
  return MM_OK;
}
template <Decay KIND>
uint64_t gatedBackwardWorkspace(const MMCall* c) {
  Scan s = describeGated<KIND>(c, 0);
  Gradient g;
  Carver carver{nullptr};
  backwardPlan<KIND>(carver, s, g, false);
  return carver.used;
}
template <Decay KIND>
int32_t gatedBackward(const MMCall* c) {
  using namespace ops::simple_gla_bwd;
  Scan s = describeGated<KIND>(c, attrs<Attrs>(c).scale);
  Gradient g = describeGradient(c, DO, DFINALSTATE);
  (KIND == Decay::Head ? g.dstep : g.dgate) = optionalResult(c, DG);
  g.dInitial = floatResult(c, DINITIALSTATE);
  Carver carver{static_cast<char*>(c->workspace)};
  const Plan plan = backwardPlan<KIND>(carver, s, g, false);
  if (!layOut(s)) return fail(c, "%s", kBadLengths);
  dispatchFloat(in(c, Q).dtype, [&](auto t) { backward<decltype(t), KIND>(s, g, plan); });
  return MM_OK;
}

}  // namespace
}  // namespace mm::cpu::MM_ISA

MM_CPU_KERNELS(
    linear_attention, {"linearAttention", "chunked", nullptr, linearAttentionWorkspace, linearAttention},
    {"linearAttentionBackward", "chunked", nullptr, linearAttentionBackwardWorkspace, linearAttentionBackward},
    {"simpleGla", "chunked", nullptr, gatedWorkspace<Decay::Head>, gated<Decay::Head>},
    {"simpleGlaBackward", "chunked", nullptr, gatedBackwardWorkspace<Decay::Head>, gatedBackward<Decay::Head>},
    {"gla", "chunked", nullptr, gatedWorkspace<Decay::Channel>, gated<Decay::Channel>},
    {"glaBackward", "chunked", nullptr, gatedBackwardWorkspace<Decay::Channel>, gatedBackward<Decay::Channel>})
