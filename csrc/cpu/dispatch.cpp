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

namespace {

// Read while the library is loaded: getenv in a later call could meet a setenv of another thread.
const std::string wanted_isa = [] {
  const char* const name = std::getenv("ALR_FAST_CPU_ISA");
  return std::string(name == nullptr ? "" : name);
}();

}  // namespace

const CpuKernels& active_cpu_kernels() {
  static const CpuKernels* const active = []() -> const CpuKernels* {
    for (const CpuKernels& kernels : compiled_cpu_kernels())  // the last one is the baseline
      if (kernels.is_supported() && (wanted_isa.empty() || wanted_isa == kernels.name))
        return &kernels;
    return nullptr;
  }();
  if (active != nullptr) return *active;
  std::string names;
  for (const CpuKernels& kernels : compiled_cpu_kernels())
    if (kernels.is_supported()) names += (names.empty() ? "" : ", ") + std::string(kernels.name);
  throw std::runtime_error("ALR_FAST_CPU_ISA=" + wanted_isa +
                           ": this build and this processor have " + names);
}

}  // namespace alr_fast
