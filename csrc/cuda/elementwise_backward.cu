// Gradients of add, sub, mul and div; in a file of its own for the time it takes to compile.
#include "cuda/elementwise.cuh"

namespace mm::cuda {
namespace {

// The gradient of one operand: the terms over dY's shape, and where they go. Sums read only the operands they need.
template <int K>
Reduction<K, 1> gradientPlan(const MMTensorView* const (&inputs)[K], const MMTensorView& target, const MMTensorView& dy) {
  const MMTensorView* views[K + 1];
  for (int k = 0; k < K; k++) views[k] = inputs[k];
  views[K] = &target;
  return Reduction<K, 1>(nestOf<K + 1>(views, dy), K - 1);
}

bool summed(const MMCall* c, int slot) {
  return hasOut(c, slot) && numel(out(c, slot)) != numel(in(c, ops::binary_bwd::DY));
}

// Operands of the terms of DA or DB, dY last.
template <Arithmetic KIND, class F>
auto withTerms(const MMCall* c, int slot, F&& f) {
  using namespace ops::binary_bwd;
  const MMTensorView &a = in(c, A), &b = in(c, B), &dy = in(c, DY);
  if constexpr (KIND == Arithmetic::Add || KIND == Arithmetic::Sub) {
    const MMTensorView* const inputs[1] = {&dy};
    return f(inputs);
  } else {
    if (KIND == Arithmetic::Div && slot == DB) {
      const MMTensorView* const inputs[3] = {&a, &b, &dy};
      return f(inputs);
    }
    const MMTensorView* const inputs[2] = {slot == DA ? &b : &a, &dy};
    return f(inputs);
  }
}

template <Arithmetic KIND>
uint64_t backwardWorkspace(const MMCall* c) {
  using namespace ops::binary_bwd;
  uint64_t bytes = 0;
  for (int slot : {int(DA), int(DB)})
    if (summed(c, slot) && numel(in(c, DY))) {
      const uint64_t need = withTerms<KIND>(c, slot, [&](const auto& inputs) {
        return gradientPlan(inputs, out(c, slot), in(c, DY)).workspace(sizeof(float));
      });
      bytes = need > bytes ? need : bytes;
    }
  return bytes;
}

template <Arithmetic KIND, class T>
int32_t sumGradient(const MMCall* c, int slot) {
  using namespace ops::binary_bwd;
  const auto &dy = in(c, DY), &target = out(c, slot);
  if (!numel(dy)) return setBytes(c, target.data, 0, numel(target) * int64_t(sizeof(T)));
  return withTerms<KIND>(c, slot, [&](const auto& inputs) {
    constexpr int K = int(std::extent_v<std::remove_reference_t<decltype(inputs)>>);
    const T* from[K];
    for (int k = 0; k < K; k++) from[k] = data<T>(*inputs[k]);
    const auto plan = gradientPlan(inputs, target, dy);
    T* to = data<T>(target);
    if constexpr (K == 1) {
      const float factor = KIND == Arithmetic::Sub && slot == DB ? -1.f : 1.f;
      return plan.run(c, SumTerms<T, T>{to, factor}, from, c->workspace);
    } else if constexpr (K == 2) {
      return plan.run(c, ProductTerms<T>{to, KIND == Arithmetic::Div}, from, c->workspace);
    } else {
      return plan.run(c, DivisorTerms<T>{to}, from, c->workspace);
    }
  });
}

// An operand of the full shape.
template <Arithmetic KIND, class T>
int32_t mapGradient(const MMCall* c, int slot) {
  using namespace ops::binary_bwd;
  const auto &dy = in(c, DY), &target = out(c, slot);
  T* const to[1] = {data<T>(target)};
  return withTerms<KIND>(c, slot, [&](const auto& inputs) {
    constexpr int K = int(std::extent_v<std::remove_reference_t<decltype(inputs)>>);
    const MMTensorView* views[K + 1];
    for (int k = 0; k < K; k++) views[k] = inputs[k];
    views[K] = &target;
    if constexpr (K == 1) return map(c, Signed<T, 1>{{KIND == Arithmetic::Sub && slot == DB ? -1.f : 1.f}}, views, dy, to);
    else if constexpr (K == 2) return map(c, ProductGradient<T>{KIND == Arithmetic::Div}, views, dy, to);
    else return map(c, DivisorGradient<T>{}, views, dy, to);
  });
}

// Both operands of the full shape: dY is read once.
template <Arithmetic KIND, class T>
int32_t mapBoth(const MMCall* c) {
  using namespace ops::binary_bwd;
  const auto &a = in(c, A), &b = in(c, B), &dy = in(c, DY);
  T* const to[2] = {data<T>(out(c, DA)), data<T>(out(c, DB))};
  if constexpr (KIND == Arithmetic::Add || KIND == Arithmetic::Sub) {
    const MMTensorView* const views[2] = {&dy, &out(c, DA)};
    return map(c, Signed<T, 2>{{1.f, KIND == Arithmetic::Sub ? -1.f : 1.f}}, views, dy, to);
  } else {
    const MMTensorView* const views[4] = {&a, &b, &dy, &out(c, DA)};
    return map(c, BothGradients<T>{KIND == Arithmetic::Div}, views, dy, to);
  }
}

template <Arithmetic KIND>
int32_t binaryBackward(const MMCall* c) {
  using namespace ops::binary_bwd;
  return dispatchFloat(in(c, DY).dtype, [&](auto t) -> int32_t {
    using T = decltype(t);
    const bool both = hasOut(c, DA) && hasOut(c, DB) && !summed(c, DA) && !summed(c, DB);
    if (both) return mapBoth<KIND, T>(c);
    for (int slot : {int(DA), int(DB)}) {
      if (!hasOut(c, slot)) continue;
      const int32_t status = summed(c, slot) ? sumGradient<KIND, T>(c, slot) : mapGradient<KIND, T>(c, slot);
      if (status != MM_OK) return status;
    }
    return MM_OK;
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(elementwise_backward,
                {"addBackward", "strided", nullptr, backwardWorkspace<Arithmetic::Add>, binaryBackward<Arithmetic::Add>},
                {"subBackward", "strided", nullptr, backwardWorkspace<Arithmetic::Sub>, binaryBackward<Arithmetic::Sub>},
                {"mulBackward", "strided", nullptr, backwardWorkspace<Arithmetic::Mul>, binaryBackward<Arithmetic::Mul>},
                {"divBackward", "strided", nullptr, backwardWorkspace<Arithmetic::Div>, binaryBackward<Arithmetic::Div>})
