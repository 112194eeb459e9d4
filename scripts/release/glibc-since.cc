// What the static C++ library of GCC 12 on Debian 12 wants from glibc and glibc 2.28 does not have. Hidden: only the library that
// links this sees it. A name that is missing here has no version in what is linked, which check-package.mjs refuses.
#include <sys/random.h>
#include <sys/stat.h>

#include <cstdint>

extern "C" {

// 2.32: lets shared_ptr skip its atomic operations while there is one thread. There never is: the executors are threads.
char __libc_single_threaded = 0;

// 2.36: std::random_device's source. getrandom is in 2.25.
uint32_t arc4random() {
  uint32_t value = 0;
  while (getrandom(&value, sizeof value, 0) != static_cast<ssize_t>(sizeof value)) {
  }
  return value;
}

// 2.33: before that fstat and lstat were macros for these.
int __fxstat64(int version, int file, struct stat64* result);
int __lxstat(int version, const char* path, struct stat* result);
int lstat(const char* path, struct stat* result) noexcept { return __lxstat(1, path, result); }
int fstat64(int file, struct stat64* result) noexcept { return __fxstat64(1, file, result); }

// Of libc_nonshared.a, which the stubs stand before.
extern void* __dso_handle;
int __cxa_atexit(void (*)(void*), void*, void*);
int atexit(void (*f)()) { return __cxa_atexit(reinterpret_cast<void (*)(void*)>(f), nullptr, &__dso_handle); }
}
