// Regimes of the row kernel: how a row is divided among threads. Host code without CUDA or torch.
#pragma once

#include <cstdint>

#include "../alr_params.h"

namespace alr_fast {

enum class Regime : int32_t {
  kSubWarp,
  kHalfWarp,
  kWarp,
  kTwoWarps,
  kFourWarps,
  kEightWarps,
  kSixteenWarps,
  kLoop,
  // Candidates: named in no launch table until a GPU has measured them (csrc/cuda/tournament).
  kHalfWarp16,
  kWarp16,
  kWarp32,
  kFourWarps32,
  kEightWarps24,
  kEightWarps32,
  kHalfWarpPrefetched,
  kHalfWarpRing,
  kWarpStaged,
  kWarpRing,
  kWarpRing4,
  kEightWarpsStaged,
  kEightWarpsRing,
  kEightWarps24Ring,
  kSixteenWarpsRing,
};

// How the losses of all blocks become the loss of the batch.
enum class Finish : int32_t {
  kArrivals,  // the block that arrives last at a counter adds them
  // Candidates, of which no kernel is shipped:
  kCluster,  // all blocks are one cluster, and send them to the first one
  kPolled,   // the last block waits for a word of each other one
};

// Where the threads of a row get its words from.
enum class Source {
  kDirect,      // device memory, when the row's turn comes
  kPrefetched,  // device memory, while the row before is being finished
  kStaged,      // shared memory, where each thread has copied them to, some rows ahead
  kRing,        // shared memory, where bulk copies bring them, some rows ahead
};

struct RegimeShape {
  Regime regime;
  const char* name;
  int lanes;       // of one warp that share a row
  int warps;       // that share a row, or its part in one block of a cluster
  int elements;    // of the row that a thread holds
  int threads;     // of a block
  int min_blocks;  // on a multiprocessor: bounds the registers
  Source source = Source::kDirect;
  int stages = 1;       // rows that are requested before the one at hand is finished
  bool pushes = false;  // blocks of a cluster store their sums in each other's memory

  // That a block holds.
  ALR_HD_MEMBER constexpr int columns() const { return lanes * warps * elements; }
  // Whether blocks of a cluster may share a row.
  ALR_HD_MEMBER constexpr bool can_be_cluster() const {
    return regime != Regime::kLoop && warps >= 8;
  }
  // Short rows are rarely multiples of 16 bytes (10, 14 or 50 classes): they have kernels for two
  // elements an access, too.
  ALR_HD_MEMBER constexpr bool has_pairs() const {
    return columns() <= 128 && source == Source::kDirect;
  }
  // A rare regime, whose only kernel has statistics, stochastic rounding and no gradient as
  // options.
  ALR_HD_MEMBER constexpr bool always_has_extras() const { return regime == Regime::kLoop; }
};

// All but kLoop hold a row in registers, so that it is read once.
constexpr RegimeShape kShapes[] = {
    {Regime::kSubWarp, "sub_warp", 8, 1, 4, 128, 6},
    {Regime::kHalfWarp, "half_warp", 16, 1, 8, 128, 6},
    {Regime::kWarp, "warp", 32, 1, 8, 128, 6},
    {Regime::kTwoWarps, "two_warps", 32, 2, 16, 64, 8},
    {Regime::kFourWarps, "four_warps", 32, 4, 16, 128, 4},
    {Regime::kEightWarps, "eight_warps", 32, 8, 16, 256, 2},
    {Regime::kSixteenWarps, "sixteen_warps", 32, 16, 16, 512, 1},
    {Regime::kLoop, "loop", 32, 16, 8, 512, 1},
    {Regime::kHalfWarp16, "half_warp_16", 16, 1, 16, 128, 4},
    {Regime::kWarp16, "warp_16", 32, 1, 16, 128, 4},
    {Regime::kWarp32, "warp_32", 32, 1, 32, 128, 3},
    {Regime::kFourWarps32, "four_warps_32", 32, 4, 32, 128, 3},
    {Regime::kEightWarps24, "eight_warps_24", 32, 8, 24, 256, 2},
    {Regime::kEightWarps32, "eight_warps_32", 32, 8, 32, 256, 1},
    {Regime::kHalfWarpPrefetched, "half_warp_prefetched", 16, 1, 16, 128, 3, Source::kPrefetched},
    {Regime::kHalfWarpRing, "half_warp_ring", 16, 1, 16, 128, 4, Source::kRing, 2},
    {Regime::kWarpStaged, "warp_staged", 32, 1, 32, 128, 3, Source::kStaged, 2},
    {Regime::kWarpRing, "warp_ring", 32, 1, 32, 128, 3, Source::kRing, 2},
    {Regime::kWarpRing4, "warp_ring_4", 32, 1, 32, 128, 3, Source::kRing, 4},
    {Regime::kEightWarpsStaged, "eight_warps_staged", 32, 8, 16, 256, 2, Source::kStaged, 2},
    {Regime::kEightWarpsRing, "eight_warps_ring", 32, 8, 16, 256, 2, Source::kRing, 3},
    {Regime::kEightWarps24Ring, "eight_warps_24_ring", 32, 8, 24, 256, 1, Source::kRing, 4, true},
    {Regime::kSixteenWarpsRing, "sixteen_warps_ring", 32, 16, 16, 512, 1, Source::kRing, 3, true},
};

constexpr const RegimeShape& shape_of(Regime regime) { return kShapes[static_cast<int>(regime)]; }

constexpr bool shapes_are_sound() {
  int n = 0;
  for (const RegimeShape& shape : kShapes) {
    if (static_cast<int>(shape.regime) != n++) return false;
    if (shape.lanes < 1 || shape.lanes > 32 || (shape.lanes & (shape.lanes - 1)) != 0) return false;
    if (shape.warps > 1 && (shape.lanes != 32 || shape.warps * 32 != shape.threads)) return false;
    if (shape.threads % 32 != 0 || shape.elements % 4 != 0) return false;
    if (shape.stages < 1 || shape.stages > shape.lanes / 2) return false;
  }
  return true;
}
static_assert(shapes_are_sound(), "in the order of the names; whole vectors, lanes and warps");

}  // namespace alr_fast
