// A tensor as JavaScript holds it: an external that owns one reference to the storage.
#pragma once
#include <napi.h>

#include "core/storage.h"

namespace mm {

// [external, dtype, shape, strides, offset]: all that the TypeScript Tensor keeps
Napi::Value wrapTensor(Napi::Env env, Tensor tensor);
// Throws ERR_DISPOSED for a disposed handle and ERR_ARGUMENT for anything that is no handle.
const Tensor& unwrapTensor(Napi::Value value, const char* what);
void disposeHandle(Napi::Value value);

}  // namespace mm
