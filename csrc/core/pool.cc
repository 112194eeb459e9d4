// The CPU backend's thread pool: parallelRanges of cpu/parallel.h. One pool a process, shared by all streams; a stream
// that finds it busy runs its ranges alone. Threads spin briefly before they sleep, because kernels follow each other
// within microseconds; they run at a lower priority than the thread of the event loop.
#include "core/pool.h"

#include <pthread.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/resource.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sched.h>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace mm {

namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int availableCores() {
  if (const char* text = std::getenv("MMMAMBA_THREADS")) {
    const int n = std::atoi(text);
    if (n >= 1 && n <= 1024) return n;
  }
#ifdef __linux__
  int n = 1;
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) n = CPU_COUNT(&set);
  long quota = 0, period = 0;  // a container's limit: "200000 100000" is two cores
  if (FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(f, "%ld %ld", &quota, &period) == 2 && period > 0 && quota > 0)
      n = std::min<long>(n, std::max<long>(1, (quota + period - 1) / period));
    std::fclose(f);
  }
#else
  const int n = static_cast<int>(std::thread::hardware_concurrency());
#endif
  return std::max(1, n);
}

struct Job {
  cpu::RangeFn fn = nullptr;
  void* context = nullptr;
  int64_t n = 0, grain = 1;
  std::atomic<int64_t> next{0};
};

class Pool {
 public:
  explicit Pool(int workers) : workers_(workers) {
    for (int w = 1; w < workers; w++) std::thread([this, w] { work(w); }).detach();
  }
  int workers() const { return workers_; }

  void run(int64_t n, int64_t grain, cpu::RangeFn fn, void* context) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    std::unique_lock<std::mutex> owner(owner_, std::defer_lock);
    if (workers_ == 1 || n <= grain || !owner.try_lock()) {
      fn(context, 0, n, 0);
      return;
    }
    job_.fn = fn, job_.context = context, job_.n = n, job_.grain = grain;
    job_.next.store(0, std::memory_order_relaxed);
    open_.store(++jobs_);
    if (sleeping_.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }  // a worker is either before its check of open_ or waiting
      wake_.notify_all();
    }
    drain(0);
    // A worker that has not come by now is not waited for: waking one takes longer than many kernels.
    open_.store(0);
    for (int spin = 0; inside_.load() > 0; spin++)
      if (spin < 4096) pause();
      else sched_yield();
  }

 private:
  void drain(int worker) {
    const int64_t n = job_.n, grain = job_.grain;
    for (;;) {
      const int64_t begin = job_.next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      job_.fn(job_.context, begin, std::min(n, begin + grain), worker);
    }
  }

  void work(int worker) {
    lowerThreadPriority();
    uint64_t seen = 0;  // the job that this worker last emptied
    const auto fresh = [&] {
      const uint64_t job = open_.load();
      return job != 0 && job != seen;
    };
    for (;;) {
      for (int spin = 0; spin < 2000 && !fresh(); spin++) pause();
      if (!fresh()) {
        std::unique_lock<std::mutex> lock(sleep_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, fresh);
        sleeping_.fetch_sub(1);
      }
      // Enter first, then look: the caller closes first, then counts. One of the two sees the other.
      inside_.fetch_add(1);
      const uint64_t job = open_.load();
      if (job) drain(worker), seen = job;
      inside_.fetch_sub(1);
    }
  }

  const int workers_;
  std::mutex owner_, sleep_;
  std::condition_variable wake_;
  uint64_t jobs_ = 0;
  std::atomic<uint64_t> open_{0};  // number of the job that takes workers, 0 when none does
  std::atomic<int> inside_{0}, sleeping_{0};
  Job job_;
};

Pool& pool() {
  static Pool* p = new Pool(availableCores());  // never destroyed: its threads live as long as the process
  return *p;
}

}  // namespace

void lowerThreadPriority() {
#ifdef __linux__  // elsewhere priorities belong to processes
  const auto self = static_cast<id_t>(syscall(SYS_gettid));
  setpriority(PRIO_PROCESS, self, getpriority(PRIO_PROCESS, self) + 2);
#endif
}

namespace cpu {
int workerCount() { return pool().workers(); }
void parallelRanges(int64_t n, int64_t grain, RangeFn fn, void* context) { pool().run(n, grain, fn, context); }
}  // namespace cpu

}  // namespace mm
