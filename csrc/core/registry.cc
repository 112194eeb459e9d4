// The one place where the schema halves of csrc/ops are compiled, and the checks that infer() functions call.
#include "core/registry.h"

#include <cstdio>
#include <cstring>

#include "core/dtype.h"
#include "ops/ops.inc"

namespace mm {

namespace {
std::vector<Schema>& table() {
  static auto* t = new std::vector<Schema>;  // filled by static initialisers, so it must outlive none of them
  return *t;
}

std::string format(const char* text, va_list args) {
  char buffer[512];
  std::vsnprintf(buffer, sizeof buffer, text, args);
  return buffer;
}

std::string dtypeSetText(uint32_t set) {
  std::string s;
  for (int d = 0; d < kDtypeCount; d++)
    if (set >> d & 1) s += (s.empty() ? "" : ", ") + std::string(dtypeName(d));
  return s;
}
}  // namespace

int registerSchema(Schema schema) {
  table().push_back(std::move(schema));
  return static_cast<int>(table().size()) - 1;
}
const std::vector<Schema>& schemas() { return table(); }
int opId(const char* name) {
  for (size_t i = 0; i < table().size(); i++)
    if (!std::strcmp(table()[i].name, name)) return static_cast<int>(i);
  return -1;
}

const char* dtypeName(int32_t dtype) {
  static const char* const names[kDtypeCount] = {"f32", "bf16", "f16", "i32", "u8"};
  return names[dtype];
}

std::string shapeText(const Shape& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); i++) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

bool fitsMemory(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t d : shape)
    if (d && (__builtin_mul_overflow(n, d, &n) || n > int64_t(1) << 44)) return false;
  return true;
}

Infer::Infer(const Schema& schema, const std::vector<std::vector<Desc>>& inputs, const void* attrs)
    : outputs(schema.outputs.size()), schema_(schema), inputs_(inputs), attrs_(attrs) {
  for (size_t s = 0; s < schema.inputs.size(); s++) {
    const InputSpec& spec = schema.inputs[s];
    if (inputs[s].empty() && !spec.optional && !spec.list)
      fail("ERR_ARGUMENT", "%s is missing: %s", spec.name, spec.doc);
    expectDtype(static_cast<int>(s), spec.dtypes);
  }
}

int64_t Infer::dim(int slot, int axis) const {
  const Shape& s = inputs_[slot][0].shape;
  const int n = static_cast<int>(s.size()), i = axis < 0 ? axis + n : axis;
  if (i < 0 || i >= n) fail("ERR_SHAPE", "%s has shape %s; expected %s", schema_.inputs[slot].name, shapeText(s).c_str(), schema_.inputs[slot].doc);
  return s[i];
}

void Infer::fail(const char* code, const char* text, ...) const {
  va_list args;
  va_start(args, text);
  std::string message = std::string(schema_.name) + ": " + format(text, args);
  va_end(args);
  throw OpError{code, std::move(message)};
}

void Infer::require(bool ok, const char* code, const char* text, ...) const {
  if (ok) return;
  va_list args;
  va_start(args, text);
  std::string message = std::string(schema_.name) + ": " + format(text, args);
  va_end(args);
  throw OpError{code, std::move(message)};
}

void Infer::expectRank(int slot, int low, int high) const {
  for (const Desc& d : inputs_[slot]) {
    const int n = static_cast<int>(d.shape.size());
    if (n < low || n > high)
      fail("ERR_SHAPE", "%s has shape %s (rank %d); expected %s", schema_.inputs[slot].name, shapeText(d.shape).c_str(), n,
           schema_.inputs[slot].doc);
  }
}
void Infer::expectRank(int slot, int rank) const { expectRank(slot, rank, rank); }

void Infer::expectShape(int slot, const Shape& want, const char* layout) const {
  for (const Desc& d : inputs_[slot])
    if (d.shape != want)
      fail("ERR_SHAPE", "%s has shape %s; expected %s = %s", schema_.inputs[slot].name, shapeText(d.shape).c_str(), layout,
           shapeText(want).c_str());
}

void Infer::expectSameShape(int slot, int other) const {
  for (const Desc& d : inputs_[slot])
    if (d.shape != inputs_[other][0].shape)
      fail("ERR_SHAPE", "%s has shape %s; expected the shape of %s, %s", schema_.inputs[slot].name, shapeText(d.shape).c_str(),
           schema_.inputs[other].name, shapeText(inputs_[other][0].shape).c_str());
}

void Infer::expectSameDtype(int slot, int other) const {
  for (const Desc& d : inputs_[slot])
    if (d.dtype != inputs_[other][0].dtype)
      fail("ERR_DTYPE", "%s is %s; expected the dtype of %s, %s", schema_.inputs[slot].name, dtypeName(d.dtype),
           schema_.inputs[other].name, dtypeName(inputs_[other][0].dtype));
}

void Infer::expectDtype(int slot, uint32_t set) const {
  for (const Desc& d : inputs_[slot])
    if (!(set >> d.dtype & 1))
      fail("ERR_DTYPE", "%s is %s; expected one of %s", schema_.inputs[slot].name, dtypeName(d.dtype), dtypeSetText(set).c_str());
}

void Infer::expectParameterDtype(int slot, int other) const {
  const int32_t own = inputs_[other][0].dtype;
  for (const Desc& d : inputs_[slot])
    if (d.dtype != MM_F32 && d.dtype != own)
      fail("ERR_DTYPE", "%s is %s; expected f32 or the dtype of %s, %s", schema_.inputs[slot].name, dtypeName(d.dtype), schema_.inputs[other].name,
           dtypeName(own));
}

int64_t Infer::expectStarts(int slot, int64_t length) const {
  expectRank(slot, 1);
  const int64_t entries = dim(slot, 0);
  require(entries >= (length ? 2 : 1), "ERR_SHAPE", "%s has shape %s; expected (S + 1), the starts of S packed sequences and their end, %lld",
          schema_.inputs[slot].name, shapeText(shape(slot)).c_str(), static_cast<long long>(length));
  return entries - 1;
}

void Infer::out(int slot, int32_t dtype, Shape shape, Shape strides) {
  if (!fitsMemory(shape))
    fail("ERR_OUT_OF_MEMORY", "%s of shape %s asks for more memory than any machine has", schema_.outputs[slot].name, shapeText(shape).c_str());
  outputs[slot].push_back({dtype, std::move(shape), std::move(strides)});
}

void Infer::outLike(int slot, int input_slot, int32_t dtype) {
  const Desc& d = inputs_[input_slot][0];
  // The same order of axes, without the gaps: axes by falling stride, dense.
  const int n = static_cast<int>(d.shape.size());
  std::vector<int> order(n);
  for (int i = 0; i < n; i++) order[i] = i;
  for (int i = 1; i < n; i++)  // stable insertion sort; at most MM_MAX_DIMS items
    for (int j = i; j > 0 && d.strides[order[j]] > d.strides[order[j - 1]]; j--) std::swap(order[j], order[j - 1]);
  Shape strides(n);
  int64_t step = 1;
  for (int i = n - 1; i >= 0; i--) strides[order[i]] = step, step *= d.shape[order[i]];
  out(slot, dtype, d.shape, strides);
}

}  // namespace mm
