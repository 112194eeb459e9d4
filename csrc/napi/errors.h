// MmError on the JavaScript side: an Error with a `code`; lib/native turns it into the class.
#pragma once
#include <napi.h>

#include <string>

namespace mm {

inline Napi::Error makeError(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error e = Napi::Error::New(env, message);
  e.Set("code", Napi::String::New(env, code));
  return e;
}

}  // namespace mm
