// The vocabulary in which operators are declared: csrc/ops/<op>.h says once what an op takes, checks and returns.
//
// A header has two parts. The first, always visible, is what kernels share with the schema: the enumerations of the
// operand slots and the Attrs structure. The second stands under MM_OP_SCHEMA and is compiled once, in
// core/registry.cc: the declaration itself and infer(), which holds every check and computes the outputs' shapes.
#pragma once
#include <cstdint>

#ifdef MM_OP_SCHEMA
#include <cstdarg>
#include <string>
#include <vector>

#include "abi/backend.h"

namespace mm {

using Shape = std::vector<int64_t>;

// dtype sets of operands
constexpr uint32_t kF32 = 1u << MM_F32, kBF16 = 1u << MM_BF16, kF16 = 1u << MM_F16, kI32 = 1u << MM_I32, kU8 = 1u << MM_U8;
constexpr uint32_t kFloat = kF32 | kBF16 | kF16;
constexpr uint32_t kAny = kFloat | kI32 | kU8;

const char* dtypeName(int32_t dtype);
std::string shapeText(const Shape& shape);
// Shapes multiply to at most 2^44, axes of zero length left out, so that no count of elements or bytes overflows.
bool fitsMemory(const Shape& shape);

// What infer() sees of an operand and says of a result. Empty strides mean dense row-major.
struct Desc {
  int32_t dtype = MM_F32;
  Shape shape;
  Shape strides;
};

struct OpError {
  const char* code;  // 'ERR_SHAPE', 'ERR_DTYPE', 'ERR_ARGUMENT', ...
  std::string message;
};

// One call being checked. Every helper throws OpError with a text that names the op, the operand and both shapes.
class Infer {
 public:
  Infer(const struct Schema& schema, const std::vector<std::vector<Desc>>& inputs, const void* attrs);

  bool has(int slot) const { return !inputs_[slot].empty(); }
  int count(int slot) const { return static_cast<int>(inputs_[slot].size()); }
  const Desc& in(int slot, int i = 0) const { return inputs_[slot][i]; }
  const Shape& shape(int slot, int i = 0) const { return inputs_[slot][i].shape; }
  int64_t dim(int slot, int axis) const;  // negative axes count from the end
  int rank(int slot) const { return static_cast<int>(inputs_[slot][0].shape.size()); }
  int32_t dtype(int slot) const { return inputs_[slot][0].dtype; }
  template <class A>
  const A& attrs() const { return *static_cast<const A*>(attrs_); }

  void expectRank(int slot, int rank) const;
  void expectRank(int slot, int low, int high) const;
  // expectShape(B, {batch, length, groups, state}, "(B, L, G, N)"); absent operands pass
  void expectShape(int slot, const Shape& want, const char* layout) const;
  void expectSameShape(int slot, int other) const;
  void expectSameDtype(int slot, int other) const;
  void expectDtype(int slot, uint32_t set) const;
  // f32 or the dtype of `other`: a parameter. Absent operands pass
  void expectParameterDtype(int slot, int other) const;
  // (S + 1): the starts of S packed sequences, and their end, `length`. S, which is 0 only where there are no steps.
  int64_t expectStarts(int slot, int64_t length) const;
  void require(bool ok, const char* code, const char* format, ...) const __attribute__((format(printf, 4, 5)));
  [[noreturn]] void fail(const char* code, const char* format, ...) const __attribute__((format(printf, 3, 4)));

  // Declares result `slot`; a result that is never declared is absent (null in JavaScript).
  void out(int slot, int32_t dtype, Shape shape, Shape strides = {});
  // A result laid out in memory like the input (same shape): a permuted input gives a permuted result.
  void outLike(int slot, int input_slot, int32_t dtype);

  std::vector<std::vector<Desc>> outputs;

 private:
  const Schema& schema_;
  const std::vector<std::vector<Desc>>& inputs_;
  const void* attrs_;
};

enum class AttrKind { Float, Int, Bool, Enum };

struct InputSpec {
  const char* name;  // camelCase, as JavaScript sees it
  uint32_t dtypes;
  const char* doc;       // layout and meaning
  bool optional = false;
  bool list = false;     // takes any number of tensors
  bool strided = false;  // the kernels take any strides; otherwise the dispatcher hands them a dense copy
  bool lastDense = false;  // with strided: the last axis has stride 1, else the dispatcher hands them a dense copy
  bool mutates = false;  // written in place
};
struct AttrSpec {
  const char* name;
  AttrKind kind;
  double initial;
  bool required;
  const char* choices;  // Enum: "none|silu|gelu"; the field holds the index
  const char* doc;
};
struct OutputSpec {
  const char* name;
  const char* doc;
};

struct Schema {
  const char* name = nullptr;  // camelCase
  const char* doc = nullptr;   // what it computes, formula, source
  std::vector<InputSpec> inputs;
  std::vector<AttrSpec> attrs;
  std::vector<OutputSpec> outputs;
  void (*infer)(Infer&) = nullptr;
  // Name of the op that computes the gradients, or why there is none ("none: ..."). The tape wires it by names: an
  // input of the backward op that is named like an input or output of this op gets that tensor, `d<Output>` (first
  // letter upper case) gets the upstream gradient, and its outputs `d<Input>` are the gradients. Its attributes of
  // the same name are copied; `needs` is a bit mask over this op's inputs that want a gradient.
  const char* backward = nullptr;
};

inline InputSpec input(const char* name, uint32_t dtypes, const char* doc) {
  InputSpec s;
  s.name = name, s.dtypes = dtypes, s.doc = doc;
  return s;
}
inline InputSpec optional(InputSpec s) { return s.optional = true, s; }
inline InputSpec list(InputSpec s) { return s.list = true, s; }
inline InputSpec strided(InputSpec s) { return s.strided = true, s; }
inline InputSpec rows(InputSpec s) { return s.strided = true, s.lastDense = true, s; }
inline InputSpec mutated(InputSpec s) { return s.mutates = true, s.strided = true, s.lastDense = true, s; }

inline AttrSpec number(const char* name, double initial, const char* doc) { return {name, AttrKind::Float, initial, false, nullptr, doc}; }
inline AttrSpec integer(const char* name, int64_t initial, const char* doc) { return {name, AttrKind::Int, double(initial), false, nullptr, doc}; }
inline AttrSpec flag(const char* name, bool initial, const char* doc) { return {name, AttrKind::Bool, initial ? 1.0 : 0.0, false, nullptr, doc}; }
inline AttrSpec choice(const char* name, const char* choices, const char* doc) { return {name, AttrKind::Enum, 0, false, choices, doc}; }
inline AttrSpec required(AttrSpec s) { return s.required = true, s; }

// Registers at static initialisation of the one unit that includes ops.inc.
int registerSchema(Schema schema);

}  // namespace mm

// Use inside the op's namespace, with designated fields in the order of Schema.
#define MM_REGISTER_OP(...) static const int registered_op = ::mm::registerSchema(::mm::Schema __VA_ARGS__)
#endif  // MM_OP_SCHEMA
