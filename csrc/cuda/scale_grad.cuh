// Backward: out[b, k] = grad_rows[b, k] * grad_scale * grad_output[b] * row_weight[b].
#pragma once

#include <cstdint>

#include "../alr_params.h"
#include "memory.cuh"

namespace alr_fast {

__device__ __forceinline__ float row_factor(const ScaleGradParams& p, int64_t b) {
  float factor = static_cast<const float*>(p.grad_output)[b * p.grad_output_stride];
  if (p.grad_scale != nullptr) factor *= *static_cast<const float*>(p.grad_scale);
  if (p.row_weight != nullptr) factor *= static_cast<const float*>(p.row_weight)[b];
  return factor;
}

// kAccesses words of kVector elements, `step` words apart. All are loaded before the first is
// stored, so that they are in flight together; `from` may be `to`. Addresses in elements would hide
// from the compiler that a word is aligned.
template <int kAccesses, class T, int kVector>
__device__ __forceinline__ void scale(const typename Pack<T, kVector>::Word* from,
                                      typename Pack<T, kVector>::Word* to, int64_t step,
                                      float factor) {
  Words<T, kVector> words[kAccesses];
#pragma unroll
  for (int n = 0; n < kAccesses; ++n)
    load<Cached::kOnce>(reinterpret_cast<const T*>(from + n * step), words[n]);
#pragma unroll
  for (int n = 0; n < kAccesses; ++n) {
    float values[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) values[i] = words[n][i] * factor;
    store<Cached::kAgain>(reinterpret_cast<T*>(to + n * step), values);
  }
}

// Blocks of (threads of a row, rows); grid of (blocks of rows, parts of a row). In place, rows with
// a factor of 1 are neither read nor written.
template <class T, int kVector>
__global__ void scale_grad_kernel(const ScaleGradParams p) {
  using Word = typename Pack<T, kVector>::Word;
  const int64_t thread = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;  // of the row
  const int64_t step = int64_t{gridDim.y} * blockDim.x;
  const int64_t words = p.classes / kVector;
  for (int64_t b = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; b < p.rows;
       b += int64_t{gridDim.x} * blockDim.y) {
    const float factor = row_factor(p, b);
    if (p.out == p.grad_rows && factor == 1) continue;
    const T* const from = static_cast<const T*>(p.grad_rows) + b * p.classes;  // [K]
    T* const to = static_cast<T*>(p.out) + b * p.classes;                      // [K]
    const Word* const from_words = reinterpret_cast<const Word*>(from);
    Word* const to_words = reinterpret_cast<Word*>(to);
    int64_t w = thread;
    for (; w + (kScaleAccesses - 1) * step < words; w += kScaleAccesses * step)
      scale<kScaleAccesses, T, kVector>(from_words + w, to_words + w, step, factor);
    for (; w < words; w += step) scale<1, T, kVector>(from_words + w, to_words + w, step, factor);
    const int64_t last = words * kVector + thread;
    if (last < p.classes) to[last] = from_float<T>(to_float(from[last]) * factor);
  }
}

}  // namespace alr_fast
