// Fibers of cuda_shim_machine.h: functions with a stack each, between which one thread of the CPU
// switches.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>

// A fiber that is stopped by an error leaks its allocations: the message. Weak: every file of a
// test that includes this has it.
extern "C" __attribute__((visibility("default"), weak)) const char* __asan_default_options() {
  return "detect_leaks=0";
}
#endif

namespace cuda_shim {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

#if defined(__x86_64__)
// By hand, since swapcontext calls the system twice: a test switches millions of times.
struct Registers {
  void* stack = nullptr;  // its top, where the registers are that a call keeps

  void start(char* memory, size_t bytes, void (*function)()) {
    constexpr int kWords = 8;  // six registers, the function, and its return address: none
    auto* const top = reinterpret_cast<void (**)()>(memory + bytes) - kWords;
    for (int n = 0; n < kWords; ++n) top[n] = n == kWords - 2 ? function : nullptr;
    stack = top;
  }
  __attribute__((naked, noinline)) static void swap(Registers* /*from*/, Registers* /*to*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
        "movq %rsp, (%rdi); movq (%rsi), %rsp;"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
};
#else
struct Registers {
  ucontext_t context;

  void start(char* memory, size_t bytes, void (*function)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, function, 0);
    // Announces the switch to the sanitizer, which would otherwise clear its records of the stack.
    context.uc_stack.ss_size = 0;
  }
  static void swap(Registers* from, Registers* to) { swapcontext(&from->context, &to->context); }
};
#endif

// What runs on a stack: a fiber, or the thread that starts fibers. It is never moved.
class Context {
 public:
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Begins `function`, which does not return, at the next switch to this fiber, whatever it was
  // doing. The stack lives as long as the process.
  void start(void (*function)()) {
    if (stack_ == nullptr) {
      void* const memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw Error("no memory for a fiber's stack");
      stack_ = memory;
      bytes_ = kStackBytes;
    }
#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
    __asan_unpoison_memory_region(stack_, bytes_);
#endif
    function_ = function;
    fake_stack_ = nullptr;
    registers_.start(static_cast<char*>(const_cast<void*>(stack_)), bytes_, begin);
  }

  // Called by what runs here; returns when something switches back.
  void switch_to(Context& next) {
    from() = this;
    to() = &next;
#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(&fake_stack_, next.stack_, next.bytes_);
#endif
    Registers::swap(&registers_, &next.registers_);
    arrive();
  }

 private:
  static constexpr size_t kStackBytes = 128 * 1024;

  // Of the last switch.
  static Context*& from() {
    static Context* context = nullptr;
    return context;
  }
  static Context*& to() {
    static Context* context = nullptr;
    return context;
  }

  static void begin() {
    to()->arrive();
    to()->function_();
  }

  // The stack of a thread is known once it is left.
  void arrive() {
#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
    Context& left = *from();
    __sanitizer_finish_switch_fiber(fake_stack_, &left.stack_, &left.bytes_);
#endif
  }

  Registers registers_;
  const void* stack_ = nullptr;
  size_t bytes_ = 0;
  void (*function_)() = nullptr;
  void* fake_stack_ = nullptr;  // of the sanitizer
};

}  // namespace cuda_shim
