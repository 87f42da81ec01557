// CPU kernels, compiled once per instruction set, and the choice between them at run time.
#pragma once

#include <cstdint>
#include <vector>

#include "../alr_params.h"

namespace alr_fast {

// Kernels of one instruction set; `begin` and `end` are batch rows, `valid_rows` those not ignored.
struct CpuKernels {
  const char* name;
  int vector_bytes;
  bool (*is_supported)();  // by this processor
  void (*row_loss)(const RowLossParams& params, int64_t valid_rows, int64_t begin, int64_t end);
  void (*scale_grad)(const ScaleGradParams& params, int64_t begin, int64_t end);
};

// The kernels of this build, the most capable instruction set first.
const std::vector<CpuKernels>& compiled_cpu_kernels();

// The most capable kernels that the processor supports, or those that the environment variable
// ALR_FAST_CPU_ISA named when the library was loaded. Throws std::runtime_error if these are not
// available.
const CpuKernels& active_cpu_kernels();

// Runs f(begin, end) over [0, rows) in chunks of at least `grain` rows, possibly in parallel.
using ParallelFor = void (*)(int64_t rows, int64_t grain, void (*f)(int64_t, int64_t, void*),
                             void* context);

// The whole operation: index checks, kernel, reduction of the loss. Throws std::out_of_range for an
// index beyond the table, before anything is written.
void cpu_row_loss(const RowLossParams& params, ParallelFor parallel_for,
                  const CpuKernels& kernels = active_cpu_kernels());
void cpu_scale_grad(const ScaleGradParams& params, ParallelFor parallel_for,
                    const CpuKernels& kernels = active_cpu_kernels());

}  // namespace alr_fast
