// CUDA on a CPU, enough of it to run csrc/coder/rans_cuda.cu: every thread of a block is a fiber that runs until it
// waits for its warp or block. Blocks and threads run in random order. A thread that leaves, or waits for
// something else, while others of its warp or block wait for it ends the program with a message.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static  // blocks run one after the other
#define __launch_bounds__(...)
#define __forceinline__ inline
#define threadIdx (emulation::self->index)
#define blockIdx (emulation::block.index)
#define blockDim (emulation::block.threads)
#define gridDim (emulation::block.grid)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 << 10;

struct Wait {
  const uint32_t* counter = nullptr;
  uint32_t target = 0;
};

using Place = void* [5];  // of __builtin_setjmp, which needs no system call, unlike swapcontext

struct Thread {
  Place place;
  ucontext_t start;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false;
  dim3 index;
  bool done = false;
  Wait wait;
  uint32_t exchanges = 0, barriers = 0;
};

struct Warp {
  uint32_t arrived = 0;
  const char* name[2];
  uint32_t slots[2][kWarp];
};

struct Block {
  dim3 index, threads, grid;
  uint32_t arrived = 0;
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared;
  std::function<void()> body;
};

inline Block block;
inline Thread* self = nullptr;
inline Place scheduler;
inline std::vector<std::unique_ptr<Thread>> threads;
inline uint32_t random_state = 1;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

inline void shuffle(std::vector<unsigned>& order, size_t size) {
  order.resize(size);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = size; i > 1; --i) {
    random_state = random_state * 1664525u + 1013904223u;
    std::swap(order[i - 1], order[(random_state >> 8) % i]);
  }
}

// AddressSanitizer would look for the end of the stack before every jump, in vain and at the price of a system call.
#define DCA_SWITCH __attribute__((noinline, no_sanitize("address"))) inline

DCA_SWITCH void jump(Place& to) { __builtin_longjmp(to, 1); }

DCA_SWITCH void leave() {
  if (__builtin_setjmp(self->place) == 0) jump(scheduler);
}

DCA_SWITCH void resume() {
  if (__builtin_setjmp(scheduler) != 0) return;
  if (std::exchange(self->started, true)) jump(self->place);
  setcontext(&self->start);
}

inline void wait_for(const uint32_t& counter, uint32_t target) {
  self->wait = {&counter, target};
  if (counter < target) leave();
}

// Gives every lane of the warp the values of all; two sets of slots, since nobody is two exchanges ahead.
inline const uint32_t* exchange(const char* name, uint32_t mask, uint32_t value) {
  if (mask != 0xFFFFFFFFu) fail("only whole warps are emulated");
  Warp& warp = block.warps[self->index.x / kWarp];
  const uint32_t turn = self->exchanges++, set = turn & 1;
  if (warp.arrived == kWarp * turn) warp.name[set] = name;
  if (std::strcmp(warp.name[set], name) != 0) fail("the lanes of a warp wait for different things");
  warp.slots[set][self->index.x % kWarp] = value;
  ++warp.arrived;
  wait_for(warp.arrived, kWarp * (turn + 1));
  return warp.slots[set];
}

inline void live() {  // through all blocks
  for (;; leave()) {
    block.body();
    self->done = true;
  }
}

inline std::unique_ptr<Thread> new_thread() {
  std::unique_ptr<Thread> thread(new Thread);
  getcontext(&thread->start);
  thread->start.uc_stack.ss_sp = thread->stack.get();
  thread->start.uc_stack.ss_size = kStack;
  makecontext(&thread->start, live, 0);
  return thread;
}

inline void run_block() {
  std::vector<unsigned> order;
  const unsigned count = block.threads.x;
  while (threads.size() < count) threads.push_back(new_thread());
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = *threads[i];
    thread.index = dim3(i, 0, 0);
    thread.done = false;
    thread.wait = {};
    thread.exchanges = thread.barriers = 0;
  }
  for (unsigned left = count; left > 0;) {
    bool moved = false;
    shuffle(order, count);
    for (const unsigned i : order) {
      self = threads[i].get();
      const Wait& wait = self->wait;
      if (self->done || (wait.counter != nullptr && *wait.counter < wait.target)) continue;
      resume();
      left -= self->done;
      moved = true;
    }
    if (!moved) fail("threads wait for others that never come");
  }
}

inline void launch(dim3 grid, dim3 count, size_t shared, void*, std::function<void()> body) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || count.x == 0 || count.x > 1024 || count.x % kWarp != 0) {
    fail("a launch of no or too many threads");
  }
  std::vector<unsigned> order;
  shuffle(order, size_t{grid.x} * grid.y * grid.z);
  for (const unsigned i : order) {
    block.index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    block.threads = count;
    block.grid = grid;
    block.arrived = 0;
    block.warps.assign(count.x / kWarp, Warp());
    block.shared.reset(new unsigned char[shared]);
    std::memset(block.shared.get(), 0xA5, shared);
    block.body = body;
    run_block();
  }
}

}  // namespace emulation

#define DCA_LAUNCH(kernel, grid, block, shared, stream, ...) \
  emulation::launch(grid, block, shared, stream, [=] { kernel(__VA_ARGS__); })
#define DCA_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::block.shared.get())

inline void __syncthreads() {
  emulation::wait_for(++emulation::block.arrived, emulation::block.threads.x * ++emulation::self->barriers);
}
inline void __threadfence() {}
template <class T>
T __ldg(const T* from) {
  return *from;
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }

inline uint32_t __ballot_sync(uint32_t mask, bool predicate) {
  const uint32_t* all = emulation::exchange("ballot", mask, predicate);
  uint32_t bits = 0;
  for (unsigned lane = 0; lane < emulation::kWarp; ++lane) bits |= all[lane] << lane;
  return bits;
}
inline void __syncwarp() { emulation::exchange("syncwarp", 0xFFFFFFFFu, 0); }
inline uint32_t __shfl_sync(uint32_t mask, uint32_t value, uint32_t lane) {
  return emulation::exchange("shfl", mask, value)[lane % emulation::kWarp];
}
inline uint32_t __shfl_up_sync(uint32_t mask, uint32_t value, uint32_t delta) {
  const uint32_t lane = threadIdx.x % emulation::kWarp;
  return emulation::exchange("shfl_up", mask, value)[lane < delta ? lane : lane - delta];
}
inline uint32_t __shfl_xor_sync(uint32_t mask, uint32_t value, uint32_t lanes) {
  return emulation::exchange("shfl_xor", mask, value)[(threadIdx.x % emulation::kWarp) ^ lanes];
}

inline uint32_t atomicAdd(uint32_t* to, uint32_t value) { return std::exchange(*to, *to + value); }
inline uint32_t atomicOr(uint32_t* to, uint32_t value) { return std::exchange(*to, *to | value); }
inline uint32_t atomicXor(uint32_t* to, uint32_t value) { return std::exchange(*to, *to ^ value); }
inline uint32_t atomicExch(uint32_t* to, uint32_t value) { return std::exchange(*to, value); }

// The few calls of the runtime.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorStreamCaptureUnsupported };
enum cudaMemcpyKind { cudaMemcpyHostToDevice };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline int emulated_shared_limit = 227 << 10;

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emulated_shared_limit, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  return std::memcpy(to, from, size), cudaSuccess;
}
