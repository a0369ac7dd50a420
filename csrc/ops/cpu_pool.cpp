#include "cpu_pool.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace dca {

#ifndef __wasm__  // csrc/wasm/pool.cpp is the pool there

namespace {

constexpr auto kSpin = std::chrono::microseconds(200);
constexpr int kMaxThreads = 256;

// Waits a moment without sleeping: operations follow each other closely. There is no pause instruction in the loop
// because hypervisors may take a processor away from a guest that repeats it; the time was chosen on a virtual machine.
template <class Condition>
bool spin_until(Condition done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i)
      if (done()) return true;
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// Every participant has its own run of the tasks, the same one in every job of as many participants, so that it finds
// in its cache what it wrote in the operation before; whoever is done helps the next.
struct Job {
  static constexpr int kMaxParts = 32;
  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void (*task)(void*, int64_t);
  void* context;
  int parts;
  Part part[kMaxParts];
  std::exception_ptr error;
  std::mutex error_mutex;

  Job(int64_t count, int participants, void (*t)(void*, int64_t), void* c)
      : task(t), context(c), parts(std::min(participants, kMaxParts)) {
    for (int p = 0; p < parts; ++p) {
      part[p].next.store(count * p / parts, std::memory_order_relaxed);
      part[p].end = count * (p + 1) / parts;
    }
  }

  void work(int participant) {
    for (int p = 0; p < parts; ++p) {
      Part& mine = part[(participant + p) % parts];
      for (int64_t i; (i = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.end;) {
        try {
          task(context, i);
        } catch (...) {
          std::lock_guard<std::mutex> lock(error_mutex);
          error = std::current_exception();
          for (Part& any : part) any.next.store(any.end, std::memory_order_relaxed);
        }
      }
    }
  }
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn) return job.work(0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; workers_ < helpers; ++workers_) std::thread([this, own = workers_ + 1] { serve(own); }).detach();
      } catch (const std::exception&) {  // no more threads, or no memory for them: those there are do the work
      }
      job_ = &job;
      helpers_ = std::min(helpers, workers_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    for (int p = 1; p <= helpers_; ++p) wake_[p].notify_one();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    if (active_.load(std::memory_order_acquire) == 0) return;
    lock.unlock();
    const auto idle = [this] { return active_.load(std::memory_order_acquire) == 0; };
    if (spin_until(idle)) return;
    lock.lock();
    finished_.wait(lock, idle);
  }

 private:
  void serve(int participant) {
    bool wanted = true;  // by the latest job; others sleep until one wants them
    for (uint64_t seen = 0;;) {
      const auto called = [&] { return epoch_.load(std::memory_order_acquire) != seen; };
      Job* job = nullptr;
      const bool awake = wanted && spin_until(called);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (!awake) wake_[participant].wait(lock, called);
        seen = epoch_.load(std::memory_order_acquire);
        wanted = participant <= helpers_;
        if (wanted && job_) {
          active_.fetch_add(1, std::memory_order_relaxed);
          job = job_;
        }
      }
      if (!job) continue;
      job->work(participant);
      std::lock_guard<std::mutex> lock(mutex_);
      active_.fetch_sub(1, std::memory_order_release);
      finished_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable wake_[kMaxThreads], finished_;  // one for each participant but the caller
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> active_{0};
  Job* job_ = nullptr;
  int helpers_ = 0, workers_ = 0;
};

// Never destroyed: workers may outlive static destructors. A forked child has no workers and unknown locks,
// so it forgets the pool and makes its own.
std::atomic<Pool*> the_pool{nullptr};
std::atomic<int> thread_count{static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))};

Pool& pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current) return *current;
#if defined(__unix__) || defined(__APPLE__)
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); }); });
#endif
  Pool* fresh = new Pool;
  if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

int threads() { return thread_count.load(std::memory_order_relaxed); }

void set_threads(int count) { thread_count.store(std::clamp(count, 1, kMaxThreads)); }

void run_parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  const int participants = static_cast<int>(std::min<int64_t>(threads(), count));
  Job job(count, participants, task, context);
  pool().run(job, participants - 1);
  if (job.error) std::rethrow_exception(job.error);
}

#endif  // __wasm__

namespace {

constexpr std::align_val_t kAlignment{64};

}  // namespace

void Buffer::Free::operator()(char* p) const { ::operator delete(p, kAlignment); }

char* Buffer::reserve(size_t bytes) {
  if (bytes > size_) {
    data_.reset();
    size_ = 0;
    data_.reset(static_cast<char*>(::operator new(bytes, kAlignment)));
    size_ = bytes;
  }
  return data_.get();
}

char* scratch(Scratch purpose, size_t bytes) {
  thread_local std::array<Buffer, static_cast<size_t>(Scratch::count)> buffers;
  return buffers[static_cast<size_t>(purpose)].reserve(bytes);
}

}  // namespace dca
