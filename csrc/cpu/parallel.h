// parallel_for of the CPU backend: fn(begin, end) over disjoint ranges of [0, n), on the pool's threads and the caller.
// How the range is cut never depends on timing, and a kernel must give the same bits however many threads there are:
// cross-range sums go through partial results of fixed blocks that are added in order.
#pragma once
#include <cstdint>

namespace mm::cpu {

using RangeFn = void (*)(void* context, int64_t begin, int64_t end, int worker);

int workerCount();  // threads that may run ranges at once, at least 1; scratch is sized by it
// Items are handed out in blocks of `grain` to whichever worker is free; blocks run in any order.
void parallelRanges(int64_t n, int64_t grain, RangeFn fn, void* context);

// f(begin, end, worker): worker < workerCount() indexes private scratch. Not reentrant: ranges must not nest.
template <class F>
void parallelFor(int64_t n, int64_t grain, F&& f) {
  parallelRanges(
      n, grain, [](void* context, int64_t begin, int64_t end, int worker) { (*static_cast<F*>(context))(begin, end, worker); },
      &f);
}

}  // namespace mm::cpu
