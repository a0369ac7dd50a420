// The pool of csrc/ops/cpu_pool.h where there is one thread.
#include <array>
#include <new>

#include "../ops/cpu_pool.h"

namespace dca {
namespace {

constexpr std::align_val_t kAlignment{64};

}  // namespace

int threads() { return 1; }

void set_threads(int) {}

void run_parallel(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

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
  static std::array<Buffer, static_cast<size_t>(Scratch::count)> buffers;
  return buffers[static_cast<size_t>(purpose)].reserve(bytes);
}

}  // namespace dca
