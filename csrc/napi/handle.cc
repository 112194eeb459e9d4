#include "napi/handle.h"

#include "napi/environment.h"
#include "napi/errors.h"

namespace mm {

namespace {

constexpr napi_type_tag kTag = {0x6d6d6d616d626121ull, 0x7f1c0a5e9b3d4c62ull};

struct Handle {
  Tensor tensor;
};

void letGo(Napi::Env env, Handle* h, bool forgotten) {
  if (!h->tensor.storage) return;
  Environment& environment = Environment::of(env);
  environment.handles--;
  if (--h->tensor.storage->handles == 0) environment.freed(static_cast<int64_t>(h->tensor.storage->bytes), forgotten);
  h->tensor = Tensor{};
}

Handle* handleOf(Napi::Value value, const char* what) {
  const Napi::Env env = value.Env();
  bool tagged = false;
  if (!value.IsExternal() || napi_check_object_type_tag(env, value, &kTag, &tagged) != napi_ok || !tagged)
    throw makeError(env, "ERR_ARGUMENT", std::string(what) + " is not a tensor of mmmamba");
  return value.As<Napi::External<Handle>>().Data();
}

Napi::Array numbers(Napi::Env env, const Shape& list) {
  Napi::Array a = Napi::Array::New(env, list.size());
  for (size_t i = 0; i < list.size(); i++) a.Set(static_cast<uint32_t>(i), Napi::Number::New(env, static_cast<double>(list[i])));
  return a;
}

}  // namespace

Napi::Value wrapTensor(Napi::Env env, Tensor tensor) {
  auto* h = new Handle{std::move(tensor)};
  auto external = Napi::External<Handle>::New(env, h, [](Napi::Env e, Handle* p) {
    letGo(e, p, true);
    delete p;
  });
  napi_type_tag_object(env, external, &kTag);
  Environment& environment = Environment::of(env);
  environment.handles++;
  if (h->tensor.storage->handles++ == 0) environment.allocated(env, static_cast<int64_t>(h->tensor.storage->bytes));
  Napi::Array a = Napi::Array::New(env, 5);
  a.Set(0u, external);
  a.Set(1u, Napi::Number::New(env, h->tensor.desc.dtype));
  a.Set(2u, numbers(env, h->tensor.desc.shape));
  a.Set(3u, numbers(env, h->tensor.desc.strides));
  a.Set(4u, Napi::Number::New(env, static_cast<double>(h->tensor.offset)));
  return a;
}

const Tensor& unwrapTensor(Napi::Value value, const char* what) {
  const Handle* h = handleOf(value, what);
  if (!h->tensor.storage) throw makeError(value.Env(), "ERR_DISPOSED", std::string(what) + " was disposed before this call");
  return h->tensor;
}

void disposeHandle(Napi::Value value) { letGo(value.Env(), handleOf(value, "the argument of dispose"), false); }

}  // namespace mm
