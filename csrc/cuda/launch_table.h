// Which regime a row of K classes takes. The kernels of the regimes named here are compiled.
#pragma once

#include <cstdint>

#include "regimes.h"

namespace alr_fast {

struct TableEntry {
  int64_t max_classes;  // the entry is for K up to this
  Regime regime;
  int blocks_per_row = 1;  // the size of the cluster
};

constexpr int64_t kMaxClasses = 262144;

// Sorted by max_classes; of equal ones, the first that the device allows counts. Rows without such
// an entry take kLoop. `python -m benchmarks.tournament --write-table` writes what is between the
// two marks.

// begin: winners
constexpr TableEntry kTableOfWords[] = {
    {32, Regime::kSubWarp},
    {128, Regime::kHalfWarp},
    {256, Regime::kWarp},
    {1024, Regime::kTwoWarps},
    {2048, Regime::kFourWarps},
    {4096, Regime::kEightWarps},
    {8192, Regime::kSixteenWarps},
    {16384, Regime::kSixteenWarps, 2},
    {32768, Regime::kSixteenWarps, 4},
    {65536, Regime::kSixteenWarps, 8},
    {131072, Regime::kSixteenWarps, 16},
};
static constexpr const auto& kTableOfHalves = kTableOfWords;
// end: winners
constexpr TableEntry kFallback = {kMaxClasses, Regime::kLoop};

struct LaunchTable {
  const TableEntry* entries;
  int size;

  constexpr const TableEntry* begin() const { return entries; }
  constexpr const TableEntry* end() const { return entries + size; }
};

template <int kSize>
constexpr LaunchTable as_launch_table(const TableEntry (&entries)[kSize]) {
  return {entries, kSize};
}

// The table for logits and target rows, the narrower of which has elements of so many bytes.
constexpr LaunchTable launch_table(int narrower_bytes) {
  return narrower_bytes == 2 ? as_launch_table(kTableOfHalves) : as_launch_table(kTableOfWords);
}

// How a batch of short rows finishes where it has so few that set_finish allows it.
// Finish::kCluster is a candidate.
constexpr Finish kTinyFinish = Finish::kArrivals;
static_assert(kTinyFinish != Finish::kPolled, "launch.cu has no words for it");

// Whether the regime has kernels with that finish.
constexpr bool has_tiny_finish(Regime regime) {
  return kTinyFinish != Finish::kArrivals && shape_of(regime).warps == 1;
}

}  // namespace alr_fast
