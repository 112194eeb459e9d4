#include "cuda/attention_backward_ordered.cuh"

#include "cuda/common/initcheck.cuh"
#include "ops/attention.h"

namespace mm::cuda {
namespace {

using namespace ops::attention_bwd;

constexpr int kDim = 128;

TicketOrder ticketOrder(const MMCall* c, const AttentionProblem& p) {
  const int64_t slots = ceilDiv(p.keys, kOrderedKeys), processors = deviceOf(c).multiprocessors;
  TicketOrder order{};
  order.group = p.sequences * p.kvHeads * slots <= processors ? 1 : p.group;
  const int64_t streams = int64_t(p.sequences) * p.heads / order.group;
  const bool fits = int64_t(p.sequences) * p.heads * p.queries * kDim * 8 <= int64_t(deviceOf(c).l2Bytes) * 3 / 2;  // q, dO and sums
  order.streams = int(streams), order.slots = int(slots), order.tiles = int(ceilDiv(p.queries, kOrderedQueries));
  const int64_t together = slots < 256 ? 16 : 4;  // long sequences: few streams with many blocks each
  order.width = int(ceilDiv(streams, fits ? 2 : ceilDiv(streams, together))), order.ascending = fits && streams > 1;
  return order;
}

struct Parts {
  float *lse2, *delta, *dQ;
  float4* keys;
  int *ticket, *turns, *members;
  int64_t rows, counters;
};
Parts takeParts(Scratch& s, const AttentionProblem& p, const TicketOrder& order) {
  const int64_t tiles = int64_t(p.sequences) * p.heads * order.tiles;
  const int64_t sums = order.group < p.group ? int64_t(p.sequences) * p.kvHeads * order.slots : 0;
  Parts parts{};
  parts.rows = tiles * kOrderedQueries, parts.counters = 1 + tiles + sums;
  parts.lse2 = s.take<float>(parts.rows), parts.delta = s.take<float>(parts.rows), parts.dQ = s.take<float>(parts.rows * kDim);
  parts.keys = s.take<float4>(sums * kOrderedKeys * kDim / 2);
  parts.ticket = s.take<int>(parts.counters), parts.turns = parts.ticket + 1, parts.members = parts.turns + tiles;
  return parts;
}

template <class T>
HeadView<T> gradientView(const MMCall* c, int slot) {
  return hasOut(c, slot) ? headView<T>(out(c, slot)) : HeadView<T>{};
}

template <class T>
int32_t run(const MMCall* c, const AttentionProblem& p, const TicketOrder& order, const OrderedMaps& maps) {
  Scratch s(c);
  const Parts parts = takeParts(s, p, order);
  const OrderedRows rows{headView<const char>(in(c, O)), headView<const char>(in(c, D_O)), data<float>(in(c, LSE)),
                         has(c, D_LSE) ? data<float>(in(c, D_LSE)) : nullptr, parts.lse2, parts.delta, parts.ticket, int(parts.counters),
                         order.tiles * kOrderedQueries};
  int32_t status = zeroForInitcheck(c, parts.dQ, parts.rows * kDim * int64_t(sizeof(float)));
  if (!status)
    status = launch(c, attentionOrderedRowsKernel<T, kDim>, dim3(unsigned(ceilDiv(parts.rows, 32))), dim3(256), 0, p, rows);
  const OrderedOperands<T> x{gradientView<T>(c, DK), gradientView<T>(c, DV), parts.lse2, parts.delta,
                             parts.dQ, parts.keys, parts.turns, parts.ticket, parts.members};
  if (!status)
    status = launch(c, attentionGradientsOrderedKernel<T, kDim>, dim3(unsigned(order.tickets())),
                    dim3(kOrderedThreads), OrderedLayout<kDim>::shared, p, order, x, maps);
  if (!status)
    status = launch(c, attentionOrderedQueriesKernel<T, kDim>, dim3(unsigned(parts.rows / kOrderedQueries)), dim3(256), 0, p,
                    static_cast<const float*>(parts.dQ), order.tiles, headView<T>(out(c, DQ)));
  return status;
}

// The sums of dQ in memory cost with the length, what they save with its square: long sequences, or so few tiles that the seven
// products would leave multiprocessors idle as well.
bool takes(const MMCall* c, const AttentionProblem& p) {
  const int64_t seen = p.left < 0 ? p.keys : int64_t(p.left) + (p.right < 0 ? p.keys : p.right);
  const bool few = int64_t(p.sequences) * p.kvHeads * ceilDiv(p.keys, kOrderedKeys) <= deviceOf(c).multiprocessors;
  const bool many = seen >= 2048 && p.queries >= 2048 && p.keys >= 2048;
  return (few || many) && p.heads > 0 && !p.packed() && p.dim > 64 && p.dim <= kDim && hasOut(c, DQ) && (hasOut(c, DK) || hasOut(c, DV));
}

}  // namespace

uint64_t orderedBackwardWorkspace(const MMCall* c, const AttentionProblem& p) {
  if (!takes(c, p)) return 0;
  Scratch s;
  takeParts(s, p, ticketOrder(c, p));
  return s.bytes();
}

bool runOrderedBackward(const MMCall* c, const AttentionProblem& p, int32_t& status) {
  static const bool built = builtForHopper(attentionGradientsOrderedKernel<bf16, kDim>);
  if (!built || !takes(c, p) || !rowsAlign(in(c, O), 8) || !aligned(16, in(c, O).data)) return false;
  OrderedMaps maps;
  if (!encodeHeads(maps.q, in(c, Q), kOrderedQueries) || !encodeHeads(maps.dO, in(c, D_O), kOrderedQueries) ||
      !encodeHeads(maps.k, in(c, K), kOrderedKeys) || !encodeHeads(maps.v, in(c, V), kOrderedKeys))
    return false;
  const TicketOrder order = ticketOrder(c, p);
  dispatchHalf(in(c, Q).dtype, [&](auto type) { return status = run<decltype(type)>(c, p, order, maps); });
  return true;
}

}  // namespace mm::cuda
