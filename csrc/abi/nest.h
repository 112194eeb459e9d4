// Loop nests over strided operands: axes of size 1 are dropped and neighbours that all operands walk as one are merged, so
// that a dense operand becomes one long row. In the namespace of the including code, as abi/call.h.
#pragma once
#include "abi/call.h"

namespace MM_CALL_NAMESPACE {

// K operands walked together: the axes outermost first, with one stride an operand.
template <int K>
struct Nest {
  int ndim = 0;
  int64_t size[MM_MAX_DIMS];
  int64_t stride[K][MM_MAX_DIMS];

  void push(int64_t n, const int64_t* strides) {
    size[ndim] = n;
    for (int k = 0; k < K; k++) stride[k][ndim] = strides[k];
    ndim++;
  }
  void swap(int a, int b) {
    exchange(size[a], size[b]);
    for (int k = 0; k < K; k++) exchange(stride[k][a], stride[k][b]);
  }
  static void exchange(int64_t& a, int64_t& b) {
    const int64_t old = a;
    a = b;
    b = old;
  }
  // Orders the axes by the strides of operand k, the largest first.
  void sortBy(int k) {
    for (int i = 1; i < ndim; i++)
      for (int j = i; j > 0 && stride[k][j] > stride[k][j - 1]; j--) swap(j, j - 1);
  }
  // Drops axes of size 1 and merges neighbours; at least one axis stays.
  void coalesce() {
    int n = 0;
    for (int i = 0; i < ndim; i++) {
      if (size[i] == 1) continue;
      bool merge = n > 0;
      for (int k = 0; merge && k < K; k++) merge = stride[k][n - 1] == stride[k][i] * size[i];
      if (!merge) {
        size[n] = size[i];
        for (int k = 0; k < K; k++) stride[k][n] = stride[k][i];
        n++;
        continue;
      }
      size[n - 1] *= size[i];
      for (int k = 0; k < K; k++) stride[k][n - 1] = stride[k][i];
    }
    ndim = n;
    if (!n) {
      const int64_t ones[MM_MAX_DIMS] = {1, 1, 1, 1, 1, 1};
      push(1, ones);
    }
  }
  int64_t count(int dims) const {
    int64_t n = 1;
    for (int i = 0; i < dims; i++) n *= size[i];
    return n;
  }
};

}  // namespace MM_CALL_NAMESPACE
