// The machine that cuda_shim.h runs kernels on: fibers, the places where they meet, shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Bounds of the static shared arrays, given by the linker; weak as there may be none.
extern "C" char __start_cuda_shim_shared[] __attribute__((weak));
extern "C" char __stop_cuda_shim_shared[] __attribute__((weak));

namespace cuda_shim {

constexpr int kWarpSize = 32;
constexpr int kPoison = 0xff;  // bytes of a float NaN
constexpr size_t kStackBytes = 128 * 1024;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What a kernel is launched with, and what this header may vary.
struct Launch {
  dim3 grid{1, 1, 1};
  dim3 block{1, 1, 1};
  size_t shared_bytes = 0;       // of the dynamic shared memory
  void* shared = nullptr;        // the array that stands for it
  size_t shared_capacity = 0;    // its size
  bool reverse_threads = false;  // run later threads first
  bool reverse_blocks = false;
  bool newest_first = false;  // a warp that may go on does so before others are told
};

// A place where threads wait for each other.
struct Meeting {
  const char* call = "";  // what the first to arrive called,
  int detail = 0;         // and its line or width
  uint64_t wanted = 0;
  uint64_t arrived = 0;
  bool any = false;
  std::vector<int> waiting;  // threads
};

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  uint3 index{};
  bool is_done = true;
  uint64_t value = 0, result = 0;  // of a shuffle
  int source = 0;                  // lane it reads
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  dim3 grid, block;
  uint3 block_index{};

  const uint3& thread_index() const { return fibers_[current_].index; }

  void run(const Launch& launch, const std::function<void()>& kernel) {
    const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
    if (threads == 0 || threads > 1024)
      throw Error("block of " + std::to_string(threads) + " threads");
    if (launch.shared_bytes > launch.shared_capacity) throw Error("the shared array is too small");
    grid = launch.grid;
    block = launch.block;
    kernel_ = &kernel;
    reverse_ = launch.reverse_threads;
    newest_first_ = launch.newest_first;
    prepare_fibers(static_cast<int>(threads));
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t n = 0; n < blocks; ++n) {
      const uint64_t at = launch.reverse_blocks ? blocks - 1 - n : n;
      block_index = {static_cast<unsigned>(at % grid.x),
                     static_cast<unsigned>(at / grid.x % grid.y),
                     static_cast<unsigned>(at / grid.x / grid.y)};
      poison_shared(launch);
      run_block();
      unpoison_shared(launch);
      if (!error_.empty()) throw Error(error_);
    }
  }

  // --- what kernels call
  // -----------------------------------------------------------------------------

  // `call` is the name of a file, `line` a line in it.
  bool barrier(const char* call, int line, bool predicate = false) {
    Meeting& meeting = barrier_;
    if (meeting.arrived == 0) {
      meeting.call = call;
      meeting.detail = line;
      meeting.wanted = fibers_in_use_;
      meeting.any = false;
    } else if (meeting.detail != line || !is_same(meeting.call, call)) {
      fail("threads diverge: some are at " + name_of(meeting) + ", one at " + call + ":" +
           std::to_string(line));
    }
    meeting.any = meeting.any || predicate;
    if (++meeting.arrived == meeting.wanted) {
      meeting.arrived = 0;
      for (int thread : meeting.waiting) fibers_[thread].result = meeting.any;
      wake(meeting);
      return meeting.any;
    }
    meeting.waiting.push_back(current_);
    switch_to_next();
    return fibers_[current_].result != 0;
  }

  // Threads of the warp in `mask` give a value and get that of lane `source`; a ballot gets them
  // all.
  uint64_t exchange(unsigned mask, uint64_t value, int source, const char* call, int width,
                    bool ballot) {
    const int lane = current_ % kWarpSize;
    if ((mask >> lane & 1) == 0) fail(std::string(call) + ": the calling lane is not in the mask");
    Meeting& meeting = warp_meetings_[current_ - lane + __builtin_ctz(mask)];
    if (meeting.arrived == 0) {
      meeting.call = call;
      meeting.detail = width;
      meeting.wanted = mask;
    } else if (meeting.wanted != mask || meeting.detail != width || !is_same(meeting.call, call)) {
      fail("lanes diverge: some are at " + name_of(meeting) + ", one at " + call + ":" +
           std::to_string(width) + " or with another mask");
    }
    fibers_[current_].value = value;
    fibers_[current_].source = source;
    meeting.arrived |= uint64_t{1} << lane;
    if (meeting.arrived == meeting.wanted) {
      meeting.arrived = 0;
      give_results(mask, current_ - lane, ballot);
      wake(meeting);
    } else {
      meeting.waiting.push_back(current_);
      switch_to_next();
    }
    return fibers_[current_].result;
  }

  [[noreturn]] void fail(const std::string& message) {
    error_ = message + " (block " + std::to_string(block_index.x) + ", thread " +
             std::to_string(current_) + ")";
    leave();
    __builtin_unreachable();
  }

 private:
  static bool is_same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

  static std::string name_of(const Meeting& meeting) {
    return std::string(meeting.call) + ":" + std::to_string(meeting.detail);
  }

  void prepare_fibers(int threads) {
    while (static_cast<int>(fibers_.size()) < threads) {
      fibers_.emplace_back();
      Fiber& fiber = fibers_.back();
      void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw Error("no memory for a fiber's stack");
      fiber.stack = static_cast<char*>(stack);
      start(fiber);
    }
    if (is_broken_) {  // fibers that were left in the middle begin anew
      for (Fiber& fiber : fibers_) start(fiber);
      is_broken_ = false;
    }
    fibers_in_use_ = threads;
    warp_meetings_.assign((threads + kWarpSize - 1) / kWarpSize * kWarpSize, Meeting());
    barrier_ = Meeting();
    error_.clear();
    for (int n = 0; n < threads; ++n) {
      const unsigned x = n % block.x, y = n / block.x % block.y, z = n / block.x / block.y;
      fibers_[n].index = {x, y, z};
    }
  }

  static void start(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    // A sanitizer would clear its notes about the whole stack at every switch; it is told of
    // switches.
    fiber.context.uc_stack.ss_size = 0;
  }

  static void fiber_main() {
    Machine& machine = get();
    machine.arrived_in(machine.current_);
    while (true) {
      (*machine.kernel_)();
      machine.fibers_[machine.current_].is_done = true;
      ++machine.done_;
      machine.switch_to_next();
    }
  }

  void run_block() {
    done_ = 0;
    ready_.clear();
    next_ready_ = 0;
    for (int n = 0; n < fibers_in_use_; ++n) {
      fibers_[n].is_done = false;
      ready_.push_back(reverse_ ? fibers_in_use_ - 1 - n : n);
    }
    current_ = take_ready();
    enter(current_);
    if (!error_.empty()) is_broken_ = true;
  }

  int take_ready() {
    if (!newest_first_) return ready_[next_ready_++];
    const int thread = ready_.back();
    ready_.pop_back();
    return thread;
  }

  void wake(Meeting& meeting) {
    if (next_ready_ > 65536) {
      ready_.erase(ready_.begin(), ready_.begin() + next_ready_);
      next_ready_ = 0;
    }
    const size_t count = meeting.waiting.size();
    for (size_t n = 0; n < count; ++n)
      ready_.push_back(meeting.waiting[reverse_ ? count - 1 - n : n]);
    meeting.waiting.clear();
  }

  void give_results(unsigned mask, int first_thread, bool ballot) {
    uint64_t votes = 0;
    for (int lane = 0; lane < kWarpSize; ++lane)
      if (mask >> lane & 1) votes |= uint64_t{fibers_[first_thread + lane].value != 0} << lane;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      Fiber& fiber = fibers_[first_thread + lane];
      if (!ballot && (mask >> fiber.source & 1) == 0)
        fail("a shuffle reads lane " + std::to_string(fiber.source) +
             ", which takes no part in it");
      fiber.result = ballot ? votes : fibers_[first_thread + fiber.source].value;
    }
  }

  // Leaves the current fiber, for one that is ready or for the end of the block.
  void switch_to_next() {
    if (next_ready_ == ready_.size()) {
      if (done_ < fibers_in_use_) {
        error_ = "threads diverge: " + std::to_string(done_) + " of " +
                 std::to_string(fibers_in_use_) +
                 " have ended, the others wait for them or for each other";
        for (const Meeting& meeting : warp_meetings_)
          if (meeting.arrived != 0) error_ += "; some at " + name_of(meeting);
        if (barrier_.arrived != 0) error_ += "; some at " + name_of(barrier_);
      }
      leave();
      return;
    }
    const int from = current_;
    current_ = take_ready();
    if (current_ == from) return;
    Fiber& fiber = fibers_[current_];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fibers_[from].fake_stack, fiber.stack, kStackBytes);
#endif
    swapcontext(&fibers_[from].context, &fiber.context);
    arrived_in(from);
  }

  void arrived_in([[maybe_unused]] int thread) {
#if defined(__SANITIZE_ADDRESS__)
    const void** const bottom = main_stack_ == nullptr ? &main_stack_ : nullptr;
    size_t* const size = bottom != nullptr ? &main_stack_bytes_ : nullptr;
    __sanitizer_finish_switch_fiber(fibers_[thread].fake_stack, bottom, size);
#endif
  }

  void enter(int thread) {
#if defined(__SANITIZE_ADDRESS__)
    main_stack_ = nullptr;  // the first fiber to run is told
    __sanitizer_start_switch_fiber(&main_fake_stack_, fibers_[thread].stack, kStackBytes);
#endif
    swapcontext(&main_, &fibers_[thread].context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(main_fake_stack_, nullptr, nullptr);
#endif
  }

  // Back to run_block.
  void leave() {
    const int from = current_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fibers_[from].fake_stack, main_stack_, main_stack_bytes_);
#endif
    swapcontext(&fibers_[from].context, &main_);
    arrived_in(from);
  }

  static void poison_shared(const Launch& launch) {
    const size_t bytes = __stop_cuda_shim_shared - __start_cuda_shim_shared;
    if (bytes > 0) std::memset(__start_cuda_shim_shared, kPoison, bytes);
    if (launch.shared != nullptr) {
      std::memset(launch.shared, kPoison, launch.shared_capacity);
#if defined(__SANITIZE_ADDRESS__)
      __asan_poison_memory_region(static_cast<char*>(launch.shared) + launch.shared_bytes,
                                  launch.shared_capacity - launch.shared_bytes);
#endif
    }
  }

  static void unpoison_shared([[maybe_unused]] const Launch& launch) {
#if defined(__SANITIZE_ADDRESS__)
    if (launch.shared != nullptr)
      __asan_unpoison_memory_region(launch.shared, launch.shared_capacity);
#endif
  }

  const std::function<void()>* kernel_ = nullptr;
  std::deque<Fiber> fibers_;            // never moved: a context points into itself
  std::vector<Meeting> warp_meetings_;  // by thread: that of the masks whose lowest lane it is
  Meeting barrier_;
  std::vector<int> ready_;
  size_t next_ready_ = 0;
  int current_ = 0, fibers_in_use_ = 0, done_ = 0;
  bool reverse_ = false, newest_first_ = false, is_broken_ = false;
  std::string error_;
  ucontext_t main_;
  void* main_fake_stack_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
};

template <class... Expected, class... Args>
void run(const Launch& launch, void (*kernel)(Expected...), Args... args) {
  Machine::get().run(launch, [&] { kernel(args...); });
}

template <class T>
T shuffle(unsigned mask, T value, int source, const char* name, int width) {
  static_assert(sizeof(T) <= 8, "one register or two");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = Machine::get().exchange(mask, word, source, name, width, false);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

inline int lane() {
  const Machine& machine = Machine::get();
  const uint3& t = machine.thread_index();
  return (t.x + machine.block.x * (t.y + machine.block.y * t.z)) % kWarpSize;
}

}  // namespace cuda_shim
