// Asynchronous memory operations of cuda_shim_machine.h: barriers in shared memory that count
// arrivals and bytes (mbarrier), transfers to shared memory that count on them, and copies of
// single threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_shim {

// The bytes of what is not there yet.
enum Filling : unsigned char {
  kNaN = 0xff,
  kLarge = 0x77,  // a finite number of any type: kernels read a row with a NaN again
};

// When the data of a transfer arrive.
enum class Delivery {
  kEarliest,  // with the instruction that starts it
  kLatest,    // when no thread can continue without; the newest first
  kRandom,
};

class AsyncMemory {
 public:
  using Fail = std::function<void(const std::string&)>;

  // `fail` does not return.
  explicit AsyncMemory(Fail fail) : fail_(std::move(fail)) {}

  void start(Delivery delivery, Filling filling, unsigned seed) {
    delivery_ = delivery;
    filling_ = filling;
    random_.seed(seed);
  }

  // Shared memory is new.
  void clear() {
    barriers_.clear();
    transfers_.clear();
    woken_.clear();
  }

  void init(uint64_t* word, unsigned count) {
    ++progress_;
    if (reinterpret_cast<uintptr_t>(word) % sizeof(*word) != 0) fail("misaligned barrier");
    if (count == 0 || count > kMaxCount)
      fail("a barrier for " + std::to_string(count) + " arrivals");
    if (barriers_.count(word) != 0) fail("a barrier is initialised twice");
    Barrier& barrier = barriers_[word];
    barrier.count = barrier.pending = count;
    *word = kTag;
  }

  // Makes the initialisation visible to copies and to other blocks.
  void fence_init() {
    for (auto& [word, barrier] : barriers_) barrier.is_fenced = true;
  }

  void arrive(uint64_t* word, unsigned expected_bytes) {
    ++progress_;
    Barrier& barrier = at(word);
    if (barrier.pending == 0)
      fail("more arrivals than the barrier was initialised for: " + describe(barrier));
    --barrier.pending;
    add_bytes(barrier, expected_bytes);
  }

  void arrive_remote(uint64_t* word, bool is_other_block) {
    check_fenced(word);
    if (is_other_block) at(word).is_for_other_blocks = true;
    arrive(word, 0);
  }

  bool has_completed(uint64_t* word, unsigned parity, bool is_cluster_scope) {
    if (parity > 1) fail("the parity is " + std::to_string(parity));
    const Barrier& barrier = at(word);
    if (barrier.is_for_other_blocks && !is_cluster_scope)
      fail("a wait of block scope for what another block has done");
    return (barrier.phase & 1) != parity;
  }

  // Puts the thread to sleep until the current phase ends.
  void wait(uint64_t* word, int thread) { at(word).waiting.push_back(thread); }

  void copy(void* to, const void* from, size_t bytes, uint64_t* word) {
    if (bytes == 0 ||
        (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % 16 != 0)
      fail("misaligned bulk copy");
#if defined(CUDA_SHIM_ADDRESS_SANITIZER)
    if (__asan_region_is_poisoned(const_cast<void*>(from), bytes) != nullptr)
      fail("a bulk copy reads out of bounds");
#endif
    begin(to, from, bytes, word, true);
  }

  void store(void* to, const void* value, size_t bytes, uint64_t* word, bool is_other_block) {
    begin(to, value, bytes, word, false);
    if (is_other_block) at(word).is_for_other_blocks = true;
  }

  // Completes one transfer; returns whether there was any.
  bool deliver() {
    if (transfers_.empty()) return false;
    const size_t n =
        delivery_ == Delivery::kRandom ? random_() % transfers_.size() : transfers_.size() - 1;
    const Transfer transfer = std::move(transfers_[n]);
    transfers_.erase(transfers_.begin() + static_cast<std::ptrdiff_t>(n));
    complete(transfer);
    return true;
  }

  // Called wherever transfers may complete.
  void maybe_deliver() {
    if (delivery_ == Delivery::kRandom && random_() % 4 == 0) deliver();
  }

  // Whether the data of a copy by one thread arrive at once, or when it waits for them.
  bool arrives_at_once() {
    return delivery_ == Delivery::kEarliest || (delivery_ == Delivery::kRandom && random_() % 2);
  }

  // A thread that waits may be told to try again although nothing has happened.
  bool is_wakeup_spurious() { return delivery_ == Delivery::kRandom && random_() % 8 == 0; }

  // Checks that nothing is on its way to the shared memory of a block that exits, and that its
  // barriers expected what arrived.
  void check_exit(const std::function<bool(const void*)>& is_mine) {
    for (const Transfer& transfer : transfers_)
      if (is_mine(transfer.to)) fail("the block exits with data on their way to its shared memory");
    for (const auto& [word, barrier] : barriers_)
      if (is_mine(word) && barrier.bytes < 0)
        fail("the block exits, and " + std::to_string(-barrier.bytes) +
             " bytes have arrived that no one expected");
  }

  // Threads whose phase has ended since the last call.
  std::vector<int> take_woken() { return std::exchange(woken_, {}); }

  // Wakes all waiting threads: they try again.
  void wake_all() {
    for (auto& [word, barrier] : barriers_) wake(barrier);
  }

  // Changes with every operation that could end a thread's wait.
  uint64_t progress() const { return progress_; }

  std::string describe(uint64_t* word) { return describe(at(word)); }

 private:
  static constexpr uint64_t kTag = 0x7ff8'6d62'6172'7269;
  static constexpr unsigned kMaxCount = (1u << 20) - 1;  // of arrivals, and of bytes

  struct Barrier {
    unsigned count = 0, pending = 0;  // arrivals of a phase, and those missing
    int64_t bytes = 0;                // expected and missing; negative: they arrived first
    uint64_t phase = 0;
    bool is_fenced = false;
    bool is_for_other_blocks = false;  // which have arrived at it or stored bytes
    std::vector<int> waiting;          // threads
  };

  struct Transfer {
    unsigned char* to;
    const void* source;  // of a copy
    std::vector<unsigned char> data;
    uint64_t* word;
    uint64_t phase;  // of the barrier when it started
  };

  [[noreturn]] void fail(const std::string& message) {
    fail_(message);
    std::abort();
  }

  Barrier& at(uint64_t* word) {
    const auto found = barriers_.find(word);
    if (found == barriers_.end()) fail("a barrier is used that was not initialised");
    if (*word != kTag) fail("a barrier has been overwritten");
    return found->second;
  }

  void check_fenced(uint64_t* word) {
    if (!at(word).is_fenced)
      fail("a barrier is used by a copy or another block without a fence after its initialisation");
  }

  static std::string describe(const Barrier& barrier) {
    return "phase " + std::to_string(barrier.phase) + ", " + std::to_string(barrier.pending) +
           " of " + std::to_string(barrier.count) + " arrivals and " +
           std::to_string(barrier.bytes) + " bytes missing";
  }

  void begin(void* to, const void* from, size_t bytes, uint64_t* word, bool is_copy) {
    ++progress_;
    check_fenced(word);
    auto* const start = static_cast<unsigned char*>(to);
    for (const Transfer& other : transfers_)
      if (start < other.to + other.data.size() && other.to < start + bytes)
        fail("two transfers to the same place");
    const auto* const data = static_cast<const unsigned char*>(from);
    transfers_.push_back(
        {start, is_copy ? from : nullptr, {data, data + bytes}, word, at(word).phase});
    if (delivery_ == Delivery::kEarliest) {
      deliver();
    } else {
      std::memset(to, filling_, bytes);  // the parts may arrive in any order
    }
  }

  void complete(const Transfer& transfer) {
    ++progress_;
    if (transfer.source != nullptr &&
        std::memcmp(transfer.source, transfer.data.data(), transfer.data.size()) != 0)
      fail("the source of a copy changed before the copy was complete");
    std::memcpy(transfer.to, transfer.data.data(), transfer.data.size());
    Barrier& barrier = at(transfer.word);
    if (barrier.phase != transfer.phase)
      fail("a phase ended before its bytes had arrived: too few were expected");
    add_bytes(barrier, -static_cast<int64_t>(transfer.data.size()));
  }

  void add_bytes(Barrier& barrier, int64_t bytes) {
    barrier.bytes += bytes;
    if (std::abs(barrier.bytes) > int64_t{kMaxCount})
      fail("too many bytes for a barrier: " + describe(barrier));
    if (barrier.pending != 0) return;
    if (barrier.bytes < 0) fail("more bytes arrived than were expected: " + describe(barrier));
    if (barrier.bytes > 0) return;
    ++barrier.phase;
    barrier.pending = barrier.count;
    wake(barrier);
  }

  void wake(Barrier& barrier) {
    woken_.insert(woken_.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }

  Fail fail_;
  Delivery delivery_ = Delivery::kEarliest;
  Filling filling_ = kNaN;
  std::minstd_rand random_;
  std::map<uint64_t*, Barrier> barriers_;
  std::vector<Transfer> transfers_;  // started, not complete
  std::vector<int> woken_;
  uint64_t progress_ = 0;
};

// Copies that a thread starts and waits for by itself: their data are visible to it only then.
class ThreadCopies {
 public:
  void begin(void* to, const void* from, size_t bytes, bool arrives_at_once, Filling filling) {
    const auto* const data = static_cast<const unsigned char*>(from);
    copies_.push_back({to, from, {data, data + bytes}, commits_, arrives_at_once});
    if (arrives_at_once) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, filling, bytes);
    }
  }

  void commit() { ++commits_; }

  // Completes the copies of all commits but the `newest` last ones; returns whether their sources
  // are unchanged.
  bool end(size_t newest) {
    bool is_unchanged = true;
    std::vector<Copy> left;
    for (Copy& copy : copies_) {
      if (copy.group + newest >= commits_) {
        left.push_back(std::move(copy));
        continue;
      }
      is_unchanged &= std::memcmp(copy.from, copy.data.data(), copy.data.size()) == 0;
      if (!copy.has_arrived) std::memcpy(copy.to, copy.data.data(), copy.data.size());
    }
    copies_ = std::move(left);
    return is_unchanged;
  }

  bool is_empty() const { return copies_.empty(); }

  void clear() {
    copies_.clear();
    commits_ = 0;
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    std::vector<unsigned char> data;
    size_t group;  // the number of commits before it
    bool has_arrived;
  };

  std::vector<Copy> copies_;  // started, not yet waited for
  size_t commits_ = 0;
};

}  // namespace cuda_shim
