// Backward: out[b, k] = grad_rows[b, k] * grad_scale * grad_output[b] * row_weight[b].
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "memory.cuh"

namespace alr_fast {

// Blocks of (threads of a row, rows); grid of (blocks of rows, parts of a row).
template <class T, int kVector>
__global__ void scale_grad_kernel(const ScaleGradParams p) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (b >= p.rows) return;
  float factor = static_cast<const float*>(p.grad_output)[b * p.grad_output_stride];
  if (p.grad_scale != nullptr) factor *= *static_cast<const float*>(p.grad_scale);
  if (p.row_weight != nullptr) factor *= static_cast<const float*>(p.row_weight)[b];
  const T* const from = static_cast<const T*>(p.grad_rows) + b * p.classes;  // [K]
  T* const to = static_cast<T*>(p.out) + b * p.classes;                      // [K]
  const int64_t step = int64_t{gridDim.y} * blockDim.x * kVector;
  int64_t k = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kVector;
  for (; k < p.classes; k += step) {
    Words<T, kVector> words;
    load<Cached::kOnce>(from + k, words);
    float values[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = words[i] * factor;
    store<Cached::kAgain>(to + k, values);
  }
}

}  // namespace alr_fast
