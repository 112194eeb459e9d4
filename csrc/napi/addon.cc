// The Node-API surface: schemas, run, tensors from and to bytes, views, waiting, statistics. It names no operator.
#include <napi.h>

#include <cmath>
#include <cstring>

#include "core/backends.h"
#include "core/dispatcher.h"
#include "core/graph.h"
#include "core/kernels.h"
#include "core/profile.h"
#include "napi/environment.h"
#include "napi/errors.h"
#include "napi/handle.h"

#define MM_TEXT_OF(x) #x
#define MM_TEXT(x) MM_TEXT_OF(x)

namespace mm {

namespace {

constexpr double kMostInteger = 9007199254740991.0;  // Number.MAX_SAFE_INTEGER

template <class F>
auto guarded(Napi::Env env, F&& f) {
  try {
    return f();
  } catch (const OpError& e) {
    throw makeError(env, e.code, e.message);
  }
}

Shape integersOf(Napi::Value value, const char* what) {
  const Napi::Env env = value.Env();
  if (!value.IsArray()) throw makeError(env, "ERR_ARGUMENT", std::string(what) + " must be an array of integers");
  const Napi::Array a = value.As<Napi::Array>();
  if (a.Length() > MM_MAX_DIMS)
    throw makeError(env, "ERR_SHAPE", std::string(what) + " has " + std::to_string(a.Length()) + " axes; at most " + std::to_string(MM_MAX_DIMS) + " are supported");
  Shape shape;
  for (uint32_t i = 0; i < a.Length(); i++) {
    const Napi::Value item = a.Get(i);
    const double d = item.IsNumber() ? item.As<Napi::Number>().DoubleValue() : NAN;
    if (!(d >= 0) || d != std::floor(d) || d > kMostInteger)
      throw makeError(env, "ERR_SHAPE", std::string(what) + "[" + std::to_string(i) + "] must be a non-negative integer");
    shape.push_back(static_cast<int64_t>(d));
  }
  return shape;
}

Shape shapeOf(Napi::Value value) {
  const Shape shape = integersOf(value, "shape");
  if (!fitsMemory(shape)) throw makeError(value.Env(), "ERR_OUT_OF_MEMORY", "shape " + shapeText(shape) + " asks for more memory than any machine has");
  return shape;
}

int32_t dtypeOf(Napi::Value value) {
  const int32_t d = value.IsNumber() ? value.As<Napi::Number>().Int32Value() : -1;
  if (d < 0 || d >= kDtypeCount) throw makeError(value.Env(), "ERR_DTYPE", "unknown dtype code; expected 0 (f32) to 4 (u8)");
  return d;
}

const char* kindName(AttrKind kind) {
  switch (kind) {
    case AttrKind::Float: return "number";
    case AttrKind::Int: return "integer";
    case AttrKind::Bool: return "boolean";
    default: return "enum";
  }
}

// schemas(): what scripts/generate-ops writes the TypeScript wrappers from, and the tape its gradient rules
Napi::Value listSchemas(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array all = Napi::Array::New(env);
  std::string reason;
  const MMBackend* cpu = findBackend("cpu", {}, reason);
  for (size_t i = 0; i < schemas().size(); i++) {
    const Schema& s = schemas()[i];
    Napi::Object o = Napi::Object::New(env);
    o.Set("name", s.name);
    o.Set("doc", s.doc);
    o.Set("backward", s.backward ? Napi::Value(Napi::String::New(env, s.backward)) : env.Null());
    o.Set("cpu", Napi::Boolean::New(env, hasKernel(cpu, static_cast<int>(i))));
    Napi::Array inputs = Napi::Array::New(env), attrs = Napi::Array::New(env), outputs = Napi::Array::New(env);
    for (size_t k = 0; k < s.inputs.size(); k++) {
      const InputSpec& in = s.inputs[k];
      Napi::Object e = Napi::Object::New(env);
      e.Set("name", in.name);
      e.Set("doc", in.doc);
      e.Set("dtypes", Napi::Number::New(env, in.dtypes));
      e.Set("optional", Napi::Boolean::New(env, in.optional));
      e.Set("list", Napi::Boolean::New(env, in.list));
      e.Set("mutates", Napi::Boolean::New(env, in.mutates));
      inputs.Set(static_cast<uint32_t>(k), e);
    }
    for (size_t k = 0; k < s.attrs.size(); k++) {
      const AttrSpec& a = s.attrs[k];
      Napi::Object e = Napi::Object::New(env);
      e.Set("name", a.name);
      e.Set("doc", a.doc);
      e.Set("kind", kindName(a.kind));
      e.Set("initial", Napi::Number::New(env, a.initial));
      e.Set("required", Napi::Boolean::New(env, a.required));
      e.Set("choices", a.choices ? Napi::Value(Napi::String::New(env, a.choices)) : env.Null());
      attrs.Set(static_cast<uint32_t>(k), e);
    }
    for (size_t k = 0; k < s.outputs.size(); k++) {
      Napi::Object e = Napi::Object::New(env);
      e.Set("name", s.outputs[k].name);
      e.Set("doc", s.outputs[k].doc);
      outputs.Set(static_cast<uint32_t>(k), e);
    }
    o.Set("inputs", inputs);
    o.Set("attrs", attrs);
    o.Set("outputs", outputs);
    all.Set(static_cast<uint32_t>(i), o);
  }
  return all;
}

uint64_t attrBits(Napi::Env env, const Schema& schema, const AttrSpec& spec, Napi::Value value) {
  const auto bad = [&](const std::string& want) {
    throw makeError(env, "ERR_ARGUMENT", std::string(schema.name) + ": " + spec.name + " must be " + want + " (" + spec.doc + ")");
  };
  double number = spec.initial;
  if (!value.IsUndefined()) switch (spec.kind) {
      case AttrKind::Bool:
        if (!value.IsBoolean()) bad("true or false");
        number = value.As<Napi::Boolean>().Value() ? 1 : 0;
        break;
      case AttrKind::Enum: {
        if (!value.IsString()) bad(std::string("one of ") + spec.choices);
        const std::string wanted = value.As<Napi::String>(), list = spec.choices;
        size_t begin = 0;
        int index = 0;
        for (;; index++) {
          const size_t end = list.find('|', begin);
          if (list.substr(begin, end - begin) == wanted) break;
          if (end == std::string::npos) bad("one of " + list + "; got '" + wanted + "'");
          begin = end + 1;
        }
        number = index;
        break;
      }
      default:
        if (!value.IsNumber() || !std::isfinite(value.As<Napi::Number>().DoubleValue())) bad("a finite number");
        number = value.As<Napi::Number>().DoubleValue();
        if (spec.kind == AttrKind::Int && number != std::floor(number)) bad("an integer");
        if (spec.kind == AttrKind::Int && std::fabs(number) > kMostInteger) bad("a safe integer");
    }
  else if (spec.required) bad("given");
  uint64_t bits;
  if (spec.kind == AttrKind::Float) std::memcpy(&bits, &number, 8);
  else bits = static_cast<uint64_t>(static_cast<int64_t>(number));
  return bits;
}

std::vector<uint64_t> attrsOf(Napi::Env env, const Schema& schema, Napi::Value value) {
  const bool given = value.IsObject();
  const Napi::Object object = given ? value.As<Napi::Object>() : Napi::Object();
  std::vector<uint64_t> bits;
  for (const AttrSpec& spec : schema.attrs) bits.push_back(attrBits(env, schema, spec, given ? object.Get(spec.name) : env.Undefined()));
  if (given) {
    const Napi::Array keys = object.GetPropertyNames();
    for (uint32_t i = 0; i < keys.Length(); i++) {
      const std::string key = keys.Get(i).ToString();
      bool known = false;
      std::string all;
      for (const AttrSpec& spec : schema.attrs) known = known || key == spec.name, all += (all.empty() ? "" : ", ") + std::string(spec.name);
      if (!known) throw makeError(env, "ERR_ARGUMENT", std::string(schema.name) + ": unknown option '" + key + "'; it takes " + (all.empty() ? "none" : all));
    }
  }
  return bits;
}

// run(op id, operands by slot (handle | null | handle[]), attributes, device) -> results by slot (wrapped | wrapped[] | null)
Napi::Value runOp(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int op = info[0].As<Napi::Number>().Int32Value();
  if (op < 0 || op >= static_cast<int>(schemas().size())) throw makeError(env, "ERR_ARGUMENT", "unknown op id " + std::to_string(op));
  const Schema& schema = schemas()[op];
  const Napi::Array slots = info[1].As<Napi::Array>();
  Operands inputs(schema.inputs.size());
  for (uint32_t s = 0; s < inputs.size(); s++) {
    const Napi::Value v = slots.Get(s);
    const std::string what = std::string(schema.name) + ": " + schema.inputs[s].name;
    if (v.IsNull() || v.IsUndefined()) continue;
    if (v.IsArray() != schema.inputs[s].list)
      throw makeError(env, "ERR_ARGUMENT", what + (v.IsArray() ? " is a list; it takes one tensor" : " is one tensor; it takes a list"));
    if (v.IsArray()) {
      const Napi::Array items = v.As<Napi::Array>();
      for (uint32_t i = 0; i < items.Length(); i++) inputs[s].push_back(unwrapTensor(items.Get(i), (what + "[" + std::to_string(i) + "]").c_str()));
    } else {
      inputs[s].push_back(unwrapTensor(v, what.c_str()));
    }
  }
  std::vector<uint64_t> attrs = attrsOf(env, schema, info[2]);
  std::shared_ptr<Stream> stream;
  for (const auto& slot : inputs)
    if (!slot.empty()) {
      stream = slot[0].storage->stream;
      break;
    }
  if (!stream) stream = Environment::of(env).stream(env, info[3].IsString() ? info[3].As<Napi::String>().Utf8Value() : "cpu");
  Operands results = guarded(env, [&] { return run(stream, op, std::move(inputs), std::move(attrs)); });
  Napi::Array out = Napi::Array::New(env, results.size());
  for (uint32_t s = 0; s < results.size(); s++) {
    if (results[s].size() < 2) {
      out.Set(s, results[s].empty() ? env.Null() : wrapTensor(env, std::move(results[s][0])));
      continue;
    }
    Napi::Array list = Napi::Array::New(env, results[s].size());
    for (uint32_t i = 0; i < results[s].size(); i++) list.Set(i, wrapTensor(env, std::move(results[s][i])));
    out.Set(s, list);
  }
  return out;
}

// fromBytes(Uint8Array | null, dtype, shape, device): a dense tensor with a copy of the bytes, or with zeros
Napi::Value fromBytes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int32_t dtype = dtypeOf(info[1]);
  const Shape shape = shapeOf(info[2]);
  const std::shared_ptr<Stream>& stream = Environment::of(env).stream(env, info[3].As<Napi::String>());
  Tensor t = emptyTensor(stream, dtype, shape);
  const uint64_t bytes = t.storage->bytes;
  std::shared_ptr<std::vector<uint8_t>> staged;
  if (!info[0].IsNull()) {
    if (!info[0].IsTypedArray()) throw makeError(env, "ERR_ARGUMENT", "bytes must be a typed array, such as new Uint8Array(buffer)");
    const auto source = info[0].As<Napi::Uint8Array>();
    if (source.ByteLength() != bytes)
      throw makeError(env, "ERR_SHAPE", "data has " + std::to_string(source.ByteLength()) + " bytes; shape " + shapeText(shape) + " of " +
                                            dtypeName(dtype) + " needs " + std::to_string(bytes));
    staged = std::make_shared<std::vector<uint8_t>>(source.Data(), source.Data() + bytes);
  }
  stream->enqueue([storage = t.storage, staged] {
    char error[512] = "";
    Stream& s = *storage->stream;
    if (!storage->materialize(error, sizeof error)) {
      storage->poison = std::string("a new tensor: ") + error;
      return s.fail(storage->poison, false);
    }
    const int32_t status = staged ? s.backend()->upload(s.handle(), storage->data, staged->data(), storage->bytes, error, sizeof error)
                                  : s.backend()->zero(s.handle(), storage->data, storage->bytes, error, sizeof error);
    if (status != MM_OK) {
      storage->poison = error;
      s.fail(error, false);
    }
  });
  return wrapTensor(env, std::move(t));
}

// view(handle, shape, strides, offset): another handle to the same storage
Napi::Value makeView(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Tensor t = unwrapTensor(info[0], "the tensor");
  const Shape shape = shapeOf(info[1]), strides = integersOf(info[2], "strides");
  const int64_t offset = info[3].As<Napi::Number>().Int64Value();
  const int64_t elements = static_cast<int64_t>(t.storage->bytes / dtypeSize(t.desc.dtype));
  bool inside = shape.size() == strides.size() && offset >= 0;
  if (inside && numelOf(shape) > 0) {
    int64_t last = offset, step;
    for (size_t i = 0; inside && i < shape.size(); i++)
      inside = !__builtin_mul_overflow(shape[i] - 1, strides[i], &step) && !__builtin_add_overflow(last, step, &last);
    inside = inside && last < elements;
  }
  if (!inside)
    throw makeError(env, "ERR_SHAPE", "the view " + shapeText(shape) + " reaches outside its storage");
  t.desc.shape = shape, t.desc.strides = strides, t.offset = offset;
  return wrapTensor(env, std::move(t));
}

// JavaScript's own constructor throws where there is no memory; napi_create_arraybuffer ends the process.
Napi::ArrayBuffer hostBuffer(Napi::Env env, uint64_t bytes) {
  try {
    return env.Global().Get("ArrayBuffer").As<Napi::Function>().New({Napi::Number::New(env, static_cast<double>(bytes))}).As<Napi::ArrayBuffer>();
  } catch (const Napi::Error& e) {
    if (!e.Value().InstanceOf(env.Global().Get("RangeError").As<Napi::Function>())) throw;
    throw makeError(env, "ERR_OUT_OF_MEMORY", "there is no host memory for the " + std::to_string(bytes) + " bytes to be read");
  }
}

// read(handle) -> Promise<ArrayBuffer> of the dense contents
Napi::Value readTensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Tensor t = unwrapTensor(info[0], "the tensor");
  if (!t.dense()) t = guarded(env, [&] { return denseCopy(t); });
  const uint64_t bytes = static_cast<uint64_t>(t.numel() * dtypeSize(t.desc.dtype));
  Napi::ArrayBuffer buffer = hostBuffer(env, bytes);
  void* host = buffer.Data();  // the fence's reference keeps it alive; nobody sees it before the promise resolves
  const std::shared_ptr<Stream> stream = t.storage->stream;
  return Environment::of(env).fence(env, stream, buffer, [t, host, bytes](void*& ticket) -> std::string {
    if (!t.storage->poison.empty()) return t.storage->poison;
    Stream& s = *t.storage->stream;
    char error[512] = "";
    const void* source = bytes ? t.view().data : nullptr;
    return s.backend()->read_begin(s.handle(), host, source, bytes, &ticket, error, sizeof error) == MM_OK ? "" : error;
  });
}

Napi::Value synchronize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::shared_ptr<Stream>& stream = Environment::of(env).stream(env, info[0].As<Napi::String>());
  return Environment::of(env).fence(env, stream, env.Undefined(), [s = stream.get()](void*& ticket) -> std::string {
    char error[512] = "";
    return s->backend()->read_begin(s->handle(), nullptr, nullptr, 0, &ticket, error, sizeof error) == MM_OK ? "" : error;
  });
}

Napi::Value dispose(const Napi::CallbackInfo& info) {
  disposeHandle(info[0]);
  return info.Env().Undefined();
}

Napi::Value memoryStats(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& e = Environment::of(env);
  Napi::Object devices = Napi::Object::New(env);
  for (const auto& [name, stream] : e.streams()) {
    Napi::Object d = Napi::Object::New(env);
    d.Set("storages", Napi::Number::New(env, static_cast<double>(stream->stats().tensors.load())));
    d.Set("bytes", Napi::Number::New(env, static_cast<double>(stream->stats().bytes.load())));
    d.Set("peakBytes", Napi::Number::New(env, static_cast<double>(stream->stats().peak.load())));
    devices.Set(name, d);
  }
  Napi::Object o = Napi::Object::New(env);
  o.Set("tensors", Napi::Number::New(env, static_cast<double>(e.handles)));
  o.Set("devices", devices);
  return o;
}

Napi::Value resetPeak(const Napi::CallbackInfo& info) {
  for (const auto& [name, stream] : Environment::of(info.Env()).streams()) stream->stats().peak.store(stream->stats().bytes.load());
  return info.Env().Undefined();
}

// profile(on) -> what was counted since the last call: [{op, variant, calls, ms}]
Napi::Value profile(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  setProfiling(info[0].ToBoolean());
  Napi::Array all = Napi::Array::New(env);
  for (const ProfileRow& row : takeProfile()) {
    Napi::Object o = Napi::Object::New(env);
    o.Set("op", row.kernel->op);
    o.Set("variant", row.kernel->variant);
    o.Set("calls", Napi::Number::New(env, static_cast<double>(row.calls)));
    o.Set("ms", Napi::Number::New(env, static_cast<double>(row.nanoseconds) / 1e6));
    all.Set(all.Length(), o);
  }
  return all;
}

constexpr napi_type_tag kGraphTag = {0x6d6d6d616d626121ull, 0x2b9e07c5d1f84a13ull};
using GraphPointer = std::shared_ptr<Graph>;

GraphPointer& graphOf(Napi::Value value) {
  bool tagged = false;
  if (!value.IsExternal() || napi_check_object_type_tag(value.Env(), value, &kGraphTag, &tagged) != napi_ok || !tagged)
    throw makeError(value.Env(), "ERR_ARGUMENT", "the argument is not a graph of mmmamba");
  GraphPointer& graph = *value.As<Napi::External<GraphPointer>>().Data();
  if (!graph) throw makeError(value.Env(), "ERR_DISPOSED", "the graph was used after dispose()");
  return graph;
}

// captureBegin(device) -> graph; what is run on the device until captureEnd(graph) is recorded instead
Napi::Value captureBegin(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::shared_ptr<Stream>& stream = Environment::of(env).stream(env, info[0].As<Napi::String>());
  if (!stream->backend()->capture_begin)
    throw makeError(env, "ERR_UNSUPPORTED", stream->deviceName() + " has no graphs; call the function itself each time");
  auto* graph = new GraphPointer(std::make_shared<Graph>(stream));
  auto external = Napi::External<GraphPointer>::New(env, graph, [](Napi::Env, GraphPointer* p) {
    // Destroyed in the stream's order: a replay may be queued still.
    if (*p) (*p)->stream()->enqueue([kept = *p] {});
    delete p;
  });
  napi_type_tag_object(env, external, &kGraphTag);
  stream->enqueue([g = *graph] {
    const std::string error = g->begin();
    if (!error.empty()) g->stream()->fail("capture: " + error, false);
  });
  return external;
}

// captureEnd(graph) -> Promise: rejected where something in between could not be captured
Napi::Value captureEnd(const Napi::CallbackInfo& info) {
  const GraphPointer graph = graphOf(info[0]);
  return Environment::of(info.Env()).fence(info.Env(), graph->stream(), info.Env().Undefined(), [graph](void*&) -> std::string {
    const std::string error = graph->end(), first = graph->stream()->takeError();
    return first.empty() ? error : first;
  });
}

Napi::Value replayGraph(const Napi::CallbackInfo& info) {
  const GraphPointer graph = graphOf(info[0]);
  graph->stream()->enqueue([graph] {
    const std::string error = graph->replay();
    if (!error.empty()) graph->stream()->fail("replay: " + error, true);
  });
  return info.Env().Undefined();
}

Napi::Value disposeGraph(const Napi::CallbackInfo& info) {
  GraphPointer& graph = graphOf(info[0]);
  graph->stream()->enqueue([kept = graph] {});
  graph.reset();
  return info.Env().Undefined();
}

// stop(): what is queued is dropped, what runs ends, and nothing runs from then on. For a process that ends: exit() takes libraries'
// code away from under threads.
Napi::Value stop(const Napi::CallbackInfo& info) {
  for (const auto& [name, stream] : Environment::of(info.Env()).streams()) stream->shutdown();
  return info.Env().Undefined();
}

Napi::Value listBackends(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Array all = Napi::Array::New(env);
  for (const char* name : {"cpu", "cuda"}) {
    const BackendStatus s = backendStatus(name, Environment::of(env).search(name));
    Napi::Object o = Napi::Object::New(env);
    o.Set("name", s.name);
    o.Set("available", Napi::Boolean::New(env, s.available));
    o.Set("reason", s.available ? env.Null() : Napi::Value(Napi::String::New(env, s.reason)));
    o.Set("library", s.library.empty() ? env.Null() : Napi::Value(Napi::String::New(env, s.library)));
    Napi::Array devices = Napi::Array::New(env);
    for (size_t i = 0; i < s.devices.size(); i++) devices.Set(static_cast<uint32_t>(i), s.devices[i]);
    o.Set("devices", devices);
    all.Set(all.Length(), o);
  }
  return all;
}

// setSearch(backend, absolute paths): where a backend's library may lie, in order
Napi::Value setSearch(const Napi::CallbackInfo& info) {
  std::vector<std::string> paths;
  const Napi::Array list = info[1].As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); i++) paths.push_back(list.Get(i).As<Napi::String>());
  Environment::of(info.Env()).setSearch(info[0].As<Napi::String>(), std::move(paths));
  return info.Env().Undefined();
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  exports.Set("version", MM_TEXT(MM_VERSION));
  exports.Set("abiVersion", Napi::Number::New(env, MM_ABI_VERSION));
  exports.Set("schemas", Napi::Function::New(env, listSchemas));
  exports.Set("run", Napi::Function::New(env, runOp));
  exports.Set("fromBytes", Napi::Function::New(env, fromBytes));
  exports.Set("view", Napi::Function::New(env, makeView));
  exports.Set("read", Napi::Function::New(env, readTensor));
  exports.Set("sync", Napi::Function::New(env, synchronize));
  exports.Set("dispose", Napi::Function::New(env, dispose));
  exports.Set("memoryStats", Napi::Function::New(env, memoryStats));
  exports.Set("resetPeak", Napi::Function::New(env, resetPeak));
  exports.Set("profile", Napi::Function::New(env, profile));
  exports.Set("captureBegin", Napi::Function::New(env, captureBegin));
  exports.Set("captureEnd", Napi::Function::New(env, captureEnd));
  exports.Set("replay", Napi::Function::New(env, replayGraph));
  exports.Set("disposeGraph", Napi::Function::New(env, disposeGraph));
  exports.Set("stop", Napi::Function::New(env, stop));
  exports.Set("backends", Napi::Function::New(env, listBackends));
  exports.Set("setSearch", Napi::Function::New(env, setSearch));
  return exports;
}

}  // namespace

}  // namespace mm

static Napi::Object Init(Napi::Env env, Napi::Object exports) { return mm::init(env, exports); }
NODE_API_MODULE(mmmamba, Init)
