#include "cuda/patch_embed.cuh"

#include "ops/patch_embed.h"

namespace mm::cuda {
namespace {

struct Patches {
  int64_t images, channels, height, width, p, gridH, gridW, features, tokens, embed;

  Patches(const MMTensorView& x, const MMTensorView& weight)
      : images(x.shape[0]), channels(x.shape[1]), height(x.shape[2]), width(x.shape[3]), p(weight.shape[2]), gridH(height / p),
        gridW(width / p), features(channels * p * p), tokens(images * gridH * gridW), embed(weight.shape[0]) {}

  CutAxis tokenAxis() const { return {FastDiv(gridH), FastDiv(gridW), {channels * height * width, p * width, p}}; }
  CutAxis featureAxis() const { return {FastDiv(p), FastDiv(p), {height * width, width, 1}}; }
  static CutAxis plain(int64_t stride) { return {FastDiv(1), FastDiv(1), {stride, 0, 0}}; }
};

// The parts that dW's sum over the tokens is cut into.
int64_t weightParts(const Patches& s) {
  const int64_t tiles = ceilDiv(s.embed, kPatchM) * ceilDiv(s.features, kPatchN);
  if (!tiles) return 1;
  const int64_t most = ceilDiv(s.tokens, 256), wanted = ceilDiv(264, tiles);
  const int64_t parts = most < wanted ? most : wanted;
  return parts > 1 ? parts : 1;
}

template <bool A_ALONG_K, bool B_ALONG_K, class T, class O>
int32_t multiply(const MMCall* c, PatchProduct<T, O>& p, int64_t parts, bool pairs) {
  constexpr int64_t kSlice = std::is_same_v<T, float> ? kPatchSlice : kPatchMmaSlice;
  p.perPart = uint32_t(ceilDiv(ceilDiv(p.k, parts), kSlice) * kSlice);
  const dim3 grid(unsigned(ceilDiv(p.m, kPatchM) * ceilDiv(p.n, kPatchN)), unsigned(parts));
  if constexpr (std::is_same_v<T, float>) {
    return launch(c, patchProductKernel<O, A_ALONG_K, B_ALONG_K>, grid, dim3(kPatchThreads), 0, p);
  } else {
    if (pairs) return launch(c, patchProductMmaKernel<T, O, A_ALONG_K, B_ALONG_K, 2>, grid, dim3(kPatchThreads), 0, p);
    return launch(c, patchProductMmaKernel<T, O, A_ALONG_K, B_ALONG_K, 1>, grid, dim3(kPatchThreads), 0, p);
  }
}

// Whether pairs of 16-bit elements may be loaded at once: they never cross the rows of a patch.
template <class... P>
bool evenWidths(const Patches& s, const P*... pointers) {
  return s.p % 2 == 0 && s.embed % 2 == 0 && aligned(4, pointers...);
}

int32_t patchEmbed(const MMCall* c) {
  using namespace ops::patch_embed;
  const auto &x = in(c, X), &w = in(c, WEIGHT), &y = out(c, Y);
  const Patches s(x, w);
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    PatchProduct<T, T> p{};
    p.a = data<T>(x), p.b = data<T>(w), p.c = data<T>(y);
    if (has(c, BIAS)) {
      if (in(c, BIAS).dtype == MM_F32) p.bias = data<float>(in(c, BIAS));
      else p.biasT = data<T>(in(c, BIAS));
    }
    p.aAxis = {s.tokenAxis(), s.featureAxis()};
    p.bAxis = {s.plain(s.features), s.plain(1)};
    p.cRow = s.plain(s.embed), p.cCol = s.plain(1);
    p.m = uint32_t(s.tokens), p.n = uint32_t(s.embed), p.k = uint32_t(s.features);
    return multiply<true, true>(c, p, 1, evenWidths(s, p.a, p.b));
  });
}

// Sums over the rows of a dense (rows, columns).
Reduction<1, 1> columnSums(int64_t rows, int64_t columns, int64_t chunks = INT64_MAX) {
  Nest<2> nest;
  const int64_t down[2] = {columns, 0}, along[2] = {1, 1};
  nest.push(rows, down);
  nest.push(columns, along);
  return Reduction<1, 1>(nest, 0, chunks);
}

uint64_t patchEmbedBackwardWorkspace(const MMCall* c) {
  using namespace ops::patch_embed_bwd;
  const Patches s(in(c, X), in(c, WEIGHT));
  const int64_t parts = weightParts(s);
  Scratch scratch;
  if (hasOut(c, DWEIGHT) && parts > 1) scratch.take<float>(parts * s.embed * s.features);
  const uint64_t ofWeight = scratch.bytes();
  const uint64_t ofBias = hasOut(c, DBIAS) && s.tokens && s.embed ? columnSums(s.tokens, s.embed).workspace(sizeof(float)) : 0;
  return ofWeight > ofBias ? ofWeight : ofBias;
}

template <class T>
int32_t weightGradient(const MMCall* c, const Patches& s) {
  using namespace ops::patch_embed_bwd;
  const int64_t parts = weightParts(s);
  float* dw = data<float>(out(c, DWEIGHT));
  PatchProduct<T, float> p{};
  p.a = data<T>(in(c, DY)), p.b = data<T>(in(c, X)), p.c = dw;
  if (parts > 1) p.partial = static_cast<float*>(c->workspace);
  p.aAxis = {s.plain(1), s.plain(s.embed)};
  p.bAxis = {s.featureAxis(), s.tokenAxis()};
  p.cRow = s.plain(s.features), p.cCol = s.plain(1);
  p.m = uint32_t(s.embed), p.n = uint32_t(s.features), p.k = uint32_t(s.tokens);
  const int32_t status = multiply<false, false>(c, p, parts, evenWidths(s, p.a, p.b));
  if (status != MM_OK || parts == 1) return status;
  const float* const from[1] = {p.partial};
  return columnSums(parts, s.embed * s.features, 1).run(c, SumTerms<float, float>{dw, 1.f}, from, nullptr);
}

template <class T>
int32_t imageGradient(const MMCall* c, const Patches& s) {
  using namespace ops::patch_embed_bwd;
  PatchProduct<T, T> p{};
  p.a = data<T>(in(c, DY)), p.b = data<T>(in(c, WEIGHT)), p.c = data<T>(out(c, DX));
  p.aAxis = {s.plain(s.embed), s.plain(1)};
  p.bAxis = {s.plain(1), s.plain(s.features)};
  p.cRow = s.tokenAxis(), p.cCol = s.featureAxis();
  p.m = uint32_t(s.tokens), p.n = uint32_t(s.features), p.k = uint32_t(s.embed);
  return multiply<true, false>(c, p, 1, evenWidths(s, p.a, p.b));
}

template <class T>
int32_t biasGradient(const MMCall* c, const Patches& s) {
  using namespace ops::patch_embed_bwd;
  float* db = data<float>(out(c, DBIAS));
  if (!s.tokens || !s.embed) return setBytes(c, db, 0, s.embed * int64_t(sizeof(float)));
  const T* const from[1] = {data<T>(in(c, DY))};
  return columnSums(s.tokens, s.embed).run(c, SumTerms<T, float>{db, 1.f}, from, c->workspace);
}

int32_t patchEmbedBackward(const MMCall* c) {
  using namespace ops::patch_embed_bwd;
  const auto& x = in(c, X);
  const Patches s(x, in(c, WEIGHT));
  return dispatchFloat(x.dtype, [&](auto t) {
    using T = decltype(t);
    int32_t status = MM_OK;
    if (hasOut(c, DX)) status = imageGradient<T>(c, s);
    if (status == MM_OK && hasOut(c, DWEIGHT)) status = weightGradient<T>(c, s);
    if (status == MM_OK && hasOut(c, DBIAS)) status = biasGradient<T>(c, s);
    return status;
  });
}

}  // namespace
}  // namespace mm::cuda

MM_CUDA_KERNELS(patch_embed, {"patchEmbed", "product", nullptr, nullptr, patchEmbed},
                {"patchEmbedBackward", "product", nullptr, patchEmbedBackwardWorkspace, patchEmbedBackward})
