// `new` and `delete` of WebAssembly: one after the other, because malloc here knows nothing of the instances that share
// its memory. The library's would also stop without a word of why where there is no more memory.
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>

namespace {

std::mutex turn;

void* allocated(std::size_t size, std::size_t alignment) noexcept {
  if (size == 0) size = 1;
  turn.lock();
  void* const at = alignment > alignof(std::max_align_t) ? std::aligned_alloc(alignment, size) : std::malloc(size);
  turn.unlock();
  return at;
}

void* not_null(void* at) {
  if (at == nullptr) throw std::bad_alloc();
  return at;
}

void freed(void* at) {
  turn.lock();
  std::free(at);
  turn.unlock();
}

}  // namespace

void* operator new(std::size_t size) { return not_null(allocated(size, 1)); }
void* operator new[](std::size_t size) { return not_null(allocated(size, 1)); }
void* operator new(std::size_t size, std::align_val_t to) { return not_null(allocated(size, std::size_t(to))); }
void* operator new[](std::size_t size, std::align_val_t to) { return not_null(allocated(size, std::size_t(to))); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocated(size, 1); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return allocated(size, 1); }
void operator delete(void* at) noexcept { freed(at); }
void operator delete[](void* at) noexcept { freed(at); }
void operator delete(void* at, std::size_t) noexcept { freed(at); }
void operator delete[](void* at, std::size_t) noexcept { freed(at); }
void operator delete(void* at, std::align_val_t) noexcept { freed(at); }
void operator delete[](void* at, std::align_val_t) noexcept { freed(at); }
void operator delete(void* at, std::size_t, std::align_val_t) noexcept { freed(at); }
void operator delete[](void* at, std::size_t, std::align_val_t) noexcept { freed(at); }
