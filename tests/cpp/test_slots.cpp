// Tests of the slots that calls of the CUDA kernels get.
#include <algorithm>
#include <set>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/slots.h"

namespace {

using alr_fast::Slots;

void check_turns() {
  Slots slots(4, 2);
  CHECK(slots.count() == 6);
  for (int call = 0; call < 10; ++call) CHECK(slots.next() == call % 4);
}

void check_kept() {
  Slots slots(4, 2);
  const int first = slots.keep(), second = slots.keep();
  CHECK(std::set<int>({first, second}) == std::set<int>({4, 5}));
  CHECK(slots.keep() == Slots::kNone);
  for (int call = 0; call < 9; ++call) CHECK(slots.next() < 4);  // never a kept one
  slots.give_back(first);
  CHECK(slots.keep() == first);
  CHECK(slots.keep() == Slots::kNone);
  slots.give_back(second);
  slots.give_back(first);
  CHECK(slots.keep() != slots.keep());
}

void check_threads() {
  constexpr int kThreads = 4, kTurns = 1000;
  Slots slots(kThreads * kTurns, kThreads);
  std::vector<int> of_calls(kThreads * kTurns);
  std::vector<std::atomic<int>> users(slots.count());
  std::atomic<int> shared{0}, missing{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int turn = 0; turn < kTurns; ++turn) {
        of_calls[thread * kTurns + turn] = slots.next();
        const int slot = slots.keep();
        if (slot == Slots::kNone) {
          ++missing;
          continue;
        }
        if (++users[slot] != 1) ++shared;
        --users[slot];
        slots.give_back(slot);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(shared == 0 && missing == 0);
  std::sort(of_calls.begin(), of_calls.end());
  CHECK(std::adjacent_find(of_calls.begin(), of_calls.end()) == of_calls.end());
}

}  // namespace

int main() {
  check_turns();
  check_kept();
  check_threads();
  return test::finish("slots");
}
