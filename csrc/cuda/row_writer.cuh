// Arguments and results of the write pass over a row.
#pragma once

#include <cstdint>

#include "../alr_math.h"
#include "../alr_params.h"
#include "reduce.cuh"

namespace alr_fast {

constexpr float kLowestFloat = -3.402823466e38f;

// By request.
struct RowFindings {  // of the columns that a thread has written
  int32_t predicted = Entry().at;
  float largest_target = Entry().value;
  Entry after;  // of the stored row
};

struct MergeFindings {
  __device__ __forceinline__ RowFindings operator()(const RowFindings& a,
                                                    const RowFindings& b) const {
    return {min(a.predicted, b.predicted), fmaxf(a.largest_target, b.largest_target),
            Largest()(a.after, b.after)};
  }
};

// Arguments of the write pass for one row.
template <class Logits>
struct RowWrite {
  RowScalars<float> scalars;
  Logits* grad;          // [K] or null
  int first_column = 0;  // class of the first column written
  float grad_factor;
  bool stores_target;
  bool rounds_stochastically;
  bool wants_findings;
  uint32_t rounding_key;
};

}  // namespace alr_fast
