#include "slots.h"

namespace alr_fast {

Slots::Slots(int in_turn, int kept) : in_turn_(in_turn), kept_(kept) {
  free_.reserve(kept);  // giving back allocates nothing
  for (int slot = in_turn + kept - 1; slot >= in_turn; --slot) free_.push_back(slot);
}

int Slots::keep() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return kNone;
  const int slot = free_.back();
  free_.pop_back();
  return slot;
}

void Slots::give_back(int slot) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(slot);
}

}  // namespace alr_fast
