// The pool of csrc/ops/cpu_pool.h in WebAssembly. With atomics, several instances of the module have one memory: that
// of the page decodes, and helpers, each in a worker of its own with its own stack, wait in dca_help for tasks. A
// helper that does not come, or comes late, only leaves more to the others.
#include "../ops/cpu_pool.h"

#include <atomic>
#include <new>

namespace dca {

void set_threads(int) {}  // the page says how many helpers there are

#ifndef __wasm_atomics__

int threads() { return 1; }

void run_parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

void wait_for_mutex() { __builtin_trap(); }  // nobody else can hold it

#else

namespace {

// Of `state`: helpers may join the job; the pool has ended. The bits below count the helpers that have joined.
constexpr int kOpen = 1 << 30, kEnded = 1 << 29;
constexpr int kSpins = 1 << 14;  // operations follow each other closely

struct Job {
  void (*task)(void*, int64_t);
  void* context;
  int64_t count;
};

Job job;  // belongs to those who have joined, and to the caller
std::atomic<int64_t> next{0};
std::atomic<int> state{0}, epoch{0}, helpers{0};

// Returns after a change of `word` that was followed by `wake`, or sooner.
void wait_while(std::atomic<int>& word, int value) {
  for (int i = 0; i < kSpins; ++i)
    if (word.load() != value) return;
  __builtin_wasm_memory_atomic_wait32(reinterpret_cast<int*>(&word), value, -1);
}

void wake(std::atomic<int>& word) { __builtin_wasm_memory_atomic_notify(reinterpret_cast<int*>(&word), ~0u); }

bool ended() { return (state.load() & kEnded) != 0; }

bool join() {
  int now = state.load();
  while ((now & kOpen) && !(now & kEnded))
    if (state.compare_exchange_weak(now, now + 1)) return true;
  return false;
}

void work() {
  for (int64_t i; (i = next.fetch_add(1)) < job.count;) job.task(job.context, i);
}

}  // namespace

int threads() { return 1 + helpers.load(); }

void run_parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  if (state.load() != 0) {  // called by a task, or without helpers any more
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  job = {task, context, count};
  next.store(0);
  state.fetch_or(kOpen);
  epoch.fetch_add(1);
  wake(epoch);
  work();
  state.fetch_and(~kOpen);
  for (int now; (now = state.load()) != 0;) {
    if (now & kEnded) throw std::bad_alloc();  // by a helper that could not finish its task
    wait_while(state, now);
  }
}

void wait_for_mutex() {
  if (ended()) __builtin_trap();
}

extern "C" {

// What a helper does until the pool ends. The page has given it a stack and its thread's variables.
void dca_help() {
  helpers.fetch_add(1);
  for (;;) {
    const int seen = epoch.load();
    if (ended()) return;
    if (join()) {
      work();
      if (state.fetch_sub(1) == 1) wake(state);
    }
    while (epoch.load() == seen) wait_while(epoch, seen);
  }
}

// Of the page when it gives its instance up, or of a helper that has failed: nobody waits any longer.
void dca_end() {
  state.fetch_or(kEnded);
  wake(state);
  epoch.fetch_add(1);
  wake(epoch);
}

int dca_threads() { return threads(); }

}  // extern "C"

#endif

}  // namespace dca
