// WebAssembly without threads has no std::thread and no std::mutex in its library. The sources ask for one thread here,
// or run all of the work on the caller's once no other is to be had: these stand-ins are that. The build includes them
// in front of every file.
#pragma once

#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_LIBCPP_HAS_THREADS) || !_LIBCPP_HAS_THREADS

namespace std {

struct mutex {
  void lock() {}
  void unlock() {}
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
