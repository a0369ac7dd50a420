// The library has no std::thread and no std::mutex here. What would start threads is asked for one of them, and mutexes
// hold off the instances of csrc/wasm/pool.cpp alone: these stand-ins are that. The build includes them in front of
// every file.
#pragma once

#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_LIBCPP_HAS_THREADS) || !_LIBCPP_HAS_THREADS

namespace dca {

// A turn of the loop that waits for a mutex. Traps once the pool has ended: who holds the mutex may not come back.
void wait_for_mutex();

}  // namespace dca

namespace std {

struct mutex {
  constexpr mutex() = default;
  void lock() {
    while (__atomic_exchange_n(&taken_, true, __ATOMIC_ACQUIRE)) dca::wait_for_mutex();
  }
  void unlock() { __atomic_store_n(&taken_, false, __ATOMIC_RELEASE); }

 private:
  bool taken_ = false;
};

struct thread {
  template <class F>
  explicit thread(F&&) {
    __builtin_trap();  // one thread never starts another
  }
  void join() {}
  static unsigned hardware_concurrency() { return 1; }
};

}  // namespace std

#endif
