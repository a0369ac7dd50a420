// What `throw` does in WebAssembly, whose library here has no exceptions: it tells the page what is wrong and does not
// come back. The instance cannot be used after that; another one is made of the same module.
#include <cstddef>
#include <exception>
#include <typeinfo>

#include "../decoder/dca_errors.h"

extern "C" {

// Of the page, which throws on its side. `status` as of dca_status, `message` ends with a zero byte.
__attribute__((import_module("dca"), import_name("fail"))) [[noreturn]] void dca_fail(int status, const char* message);

void* __cxa_allocate_exception(size_t size) {
  alignas(16) static thread_local char room[256];  // there may be no memory
  if (size > sizeof room) __builtin_trap();
  return room;
}

// Everything that is thrown here derives from std::exception, and begins with it.
[[noreturn]] void __cxa_throw(void* thrown, std::type_info*, void (*)(void*)) {
  const dca_error error = dca::decoder::described(*static_cast<std::exception*>(thrown));
  dca_fail(error.status, error.message);
}

// Named by code behind a throw, which is never reached.
void __cxa_free_exception(void*) { __builtin_trap(); }
void* __cxa_begin_catch(void*) { __builtin_trap(); }
void __cxa_end_catch() { __builtin_trap(); }
[[noreturn]] void __cxa_rethrow() { __builtin_trap(); }

// What a thread keeps goes with the memory of its instance.
int __cxa_thread_atexit(void (*)(void*), void*, void*) { return 0; }

}  // extern "C"
