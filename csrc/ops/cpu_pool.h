// Threads that outlive the calls, and scratch memory that outlives them too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

namespace dca {

int threads();
void set_threads(int count);  // how many threads one call may use, the caller included

// Runs task(context, i) for i in [0, count) on the caller and idle workers; rethrows what a task throws. A
// call made while another one uses the workers runs alone on its own thread. Safe in a child after fork.
void run_parallel(int64_t count, void (*task)(void*, int64_t), void* context);

// The same for a callable. `work` in operations: small jobs are not worth waking a thread.
template <class F>
void parallel_for(int64_t count, int64_t work, F&& body) {
  constexpr int64_t kWorthwhile = 1'000'000;
  if (count <= 1 || work < kWorthwhile || threads() == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  using Body = std::remove_reference_t<F>;
  run_parallel(count, [](void* f, int64_t i) { (*static_cast<Body*>(f))(i); }, &body);
}

// Makes something the first time that it is needed, by whichever thread is first. (In WebAssembly the library's
// call_once does not wait for other threads.)
class Once {
 public:
  template <class F>
  void call(F&& make) {
    if (made_.load(std::memory_order_acquire)) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (made_.load(std::memory_order_relaxed)) return;
    make();
    made_.store(true, std::memory_order_release);
  }

 private:
  std::atomic<bool> made_{false};
  std::mutex mutex_;
};

// Grow-only, 64-byte aligned memory. Contents are lost when it grows.
class Buffer {
 public:
  char* reserve(size_t bytes);

 private:
  struct Free {
    void operator()(char* p) const;
  };
  std::unique_ptr<char, Free> data_;
  size_t size_ = 0;
};

enum class Scratch { strip, hidden, gated, mixed, sites, regions, tokens, count };

// Memory of this thread, one piece per purpose, valid until the same purpose asks for more.
char* scratch(Scratch purpose, size_t bytes);

template <class T>
T* scratch_of(Scratch purpose, int64_t count) {
  return reinterpret_cast<T*>(scratch(purpose, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace dca
