// The CPU side: kernels compiled once per instruction set, and the run-time choice between them.
#pragma once

#include <cstdint>
#include <vector>

#include "../alr_params.h"

namespace alr_fast {

// Kernels of one instruction set; `begin` and `end` are batch rows, `valid_rows` those not ignored.
struct CpuKernels {
  const char* name;
  int vector_bytes;
  bool (*is_supported)();  // by the processor at hand
  void (*row_loss)(const RowLossParams& params, int64_t valid_rows, int64_t begin, int64_t end);
  void (*scale_grad)(const ScaleGradParams& params, int64_t begin, int64_t end);
};

// Those compiled in, the most capable first.
const std::vector<CpuKernels>& compiled_cpu_kernels();

// The most capable one that the processor supports, or the one that the environment variable
// ALR_FAST_CPU_ISA names (read at every call). Throws std::runtime_error if that one cannot be
// had.
const CpuKernels& active_cpu_kernels();

// Runs f(begin, end) over [0, rows) in pieces of at least `grain` rows, perhaps in parallel.
using ParallelFor = void (*)(int64_t rows, int64_t grain, void (*f)(int64_t, int64_t, void*),
                             void* context);

// The whole operation: index checks, kernel, reduction of the loss. Throws std::out_of_range for an
// index beyond the table, before anything is written.
void cpu_row_loss(const RowLossParams& params, ParallelFor parallel_for);
void cpu_scale_grad(const ScaleGradParams& params, ParallelFor parallel_for);

}  // namespace alr_fast
