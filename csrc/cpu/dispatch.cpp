// Chooses the instruction set at run time.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu_kernels.h"

namespace alr_fast {

// One row_loss.cpp object each, see CMakeLists.txt.
#define ALR_DECLARE_ISA(isa)                                                           \
  namespace isa {                                                                      \
  void row_loss(const RowLossParams&, int64_t valid_rows, int64_t begin, int64_t end); \
  void scale_grad(const ScaleGradParams&, int64_t begin, int64_t end);                 \
  }
ALR_DECLARE_ISA(baseline)
#if defined(ALR_FAST_X86_ISAS)
ALR_DECLARE_ISA(avx2)
ALR_DECLARE_ISA(avx512)
#endif
#undef ALR_DECLARE_ISA

const std::vector<CpuKernels>& compiled_cpu_kernels() {
  static const std::vector<CpuKernels> kernels = {
#if defined(ALR_FAST_X86_ISAS)
      {"avx512", 64,
       [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
       },
       avx512::row_loss, avx512::scale_grad},
      {"avx2", 32,
       [] {
         // Every processor with AVX2 has F16C, which older compilers cannot test for.
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
       },
       avx2::row_loss, avx2::scale_grad},
#endif
      {"baseline", 16, [] { return true; }, baseline::row_loss, baseline::scale_grad},
  };
  return kernels;
}

const CpuKernels& active_cpu_kernels() {
  static const CpuKernels* const best = [] {
    const CpuKernels* kernels = compiled_cpu_kernels().data();
    while (!kernels->is_supported()) ++kernels;  // ends at the baseline
    return kernels;
  }();
  const char* wanted = std::getenv("ALR_FAST_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *best;
  std::string names;
  for (const CpuKernels& kernels : compiled_cpu_kernels()) {
    if (!kernels.is_supported()) continue;
    if (std::string(wanted) == kernels.name) return kernels;
    names += names.empty() ? kernels.name : std::string(", ") + kernels.name;
  }
  throw std::runtime_error("ALR_FAST_CPU_ISA=" + std::string(wanted) +
                           ": this build and this processor have " + names);
}

}  // namespace alr_fast
