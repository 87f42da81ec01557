// The checks that every implementation of the row operation must pass.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "alr_params.h"

namespace test {

struct Backend {
  const char* name;
  bool is_cuda;                  // accepts out-of-range rows, rejects float64
  std::vector<int64_t> classes;  // sizes around changes of the code path, and odd sizes
  std::function<void(const alr_fast::RowLossParams&)> row_loss;
  std::function<void(const alr_fast::ScaleGradParams&)> scale_grad;
};

void check_sizes(const Backend& backend);     // every K with every pair of dtypes
void check_options(const Backend& backend);   // reductions, gradients, strides, statistics, indices
void check_mutants(const Backend& backend);   // comparisons that must fail
void check_rounding(const Backend& backend);  // stochastic rounding
void check_scale_grad(const Backend& backend);  // backward

}  // namespace test
