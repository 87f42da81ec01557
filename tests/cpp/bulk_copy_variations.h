// The ways in which a launch with asynchronous copies may run.
#pragma once

#include <vector>

#include "cuda_shim.h"

namespace test {

// All orders of threads and blocks, and times of delivery.
inline std::vector<cuda_shim::Launch> variations(cuda_shim::Launch launch) {
  std::vector<cuda_shim::Launch> all;
  for (const bool reverse : {false, true}) {
    launch.reverse_threads = launch.reverse_blocks = reverse;
    for (const bool newest_first : {false, true}) {
      launch.newest_first = newest_first;
      launch.seed = 1;
      launch.delivery = cuda_shim::Delivery::kEarliest;
      all.push_back(launch);
      launch.delivery = cuda_shim::Delivery::kLatest;
      all.push_back(launch);
      launch.delivery = cuda_shim::Delivery::kRandom;
      for (launch.seed = 1; launch.seed <= 3; ++launch.seed) all.push_back(launch);
    }
  }
  return all;
}

}  // namespace test
