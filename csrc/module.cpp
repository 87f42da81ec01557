// alr_fast._C: facts about the build and the choice of kernel. No tensors, no torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "cpu/cpu_kernels.h"
#include "cuda/launch_plan.h"

namespace py = pybind11;

namespace alr_fast {
namespace {

DType dtype_named(const std::string& name) {
  static const std::map<std::string, DType> types = {
      {"float32", DType::kFloat32}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBFloat16}};
  const auto found = types.find(name);
  if (found == types.end())
    throw std::invalid_argument("unknown dtype " + name +
                                ": the CUDA kernels take float32, float16 and bfloat16");
  return found->second;
}

py::dict build_info() {
  py::dict info;
  info["version"] = ALR_FAST_VERSION;
  info["compiler"] = ALR_FAST_COMPILER;
  info["torch_built_with"] = ALR_FAST_TORCH_VERSION;
#if defined(ALR_FAST_CUDA_VERSION)
  info["cuda_version"] = ALR_FAST_CUDA_VERSION;
  info["cuda_architectures"] = ALR_FAST_CUDA_ARCHITECTURES;
  info["cuda_reason"] = py::none();
#else
  info["cuda_version"] = py::none();
  info["cuda_architectures"] = py::none();
  info["cuda_reason"] = ALR_FAST_CUDA_REASON;  // why they are not built
#endif
  py::list compiled, supported;
  for (const CpuKernels& kernels : compiled_cpu_kernels()) {
    compiled.append(kernels.name);
    if (kernels.is_supported()) supported.append(kernels.name);
  }
  info["cpu_isas_compiled"] = compiled;
  info["cpu_isas_supported"] = supported;
  info["cpu_isa_in_use"] = active_cpu_kernels().name;
  return info;
}

py::dict plan_of(int64_t rows, int64_t classes, const std::string& logits_dtype,
                 const std::optional<std::string>& bank_dtype, int aligned, bool has_extras,
                 int cluster_size) {
  if (aligned < 1 || (aligned & (aligned - 1)) != 0)
    throw std::invalid_argument("aligned is " + std::to_string(aligned) +
                                ": it must be a power of two");
  if (cluster_size < 1 || cluster_size > kMaxClusterBlocks ||
      (cluster_size & (cluster_size - 1)) != 0)
    throw std::invalid_argument("cluster_size is " + std::to_string(cluster_size) +
                                ": it must be a power of two from 1 to " +
                                std::to_string(kMaxClusterBlocks));
  std::optional<DType> table_dtype;
  if (bank_dtype) table_dtype = dtype_named(*bank_dtype);
  const LaunchPlan plan = launch_plan(rows, classes, dtype_named(logits_dtype), table_dtype,
                                      aligned, has_extras, {cluster_size});
  py::dict facts;
  facts["regime"] = shape_of(plan.regime).name;
  facts["threads_per_row"] = plan.threads_per_row;
  facts["rows_per_block"] = plan.rows_per_block;
  facts["threads_per_block"] = plan.threads_per_block;
  facts["blocks_per_row"] = plan.blocks_per_row;
  facts["elements_per_thread"] = plan.elements_per_thread;
  facts["vector_width"] = plan.vector_width;
  facts["has_extras"] = plan.has_extras;
  facts["any_target"] = plan.any_target;
  facts["shared_memory"] = plan.shared_memory;
  facts["blocks"] = plan.blocks;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the build of alr_fast and about its choice of kernel.";
  m.def("build_info", &build_info,
        "Version, compiler, CUDA version and architectures (or None), CPU instruction sets.");
  m.def(
      "launch_plan", &plan_of, py::arg("rows"), py::arg("classes"),
      py::arg("logits_dtype") = "float32", py::arg("bank_dtype") = "float32",
      py::arg("aligned") = kAccessBytes, py::arg("has_extras") = false,
      py::arg("cluster_size") = DeviceLimits().cluster_size,
      "The CUDA kernel for a batch: regime, threads per row and per block, rows per block, blocks "
      "per row (a cluster), elements that a thread holds, vector width in elements, shared memory "
      "in bytes, blocks that have work (fewer take several rows in turn); whether the kernel has "
      "statistics, stochastic rounding and no gradient as options (has_extras), and the type of "
      "the bank (any_target). `aligned`: elements of which all row starts are multiples; "
      "`has_extras`: statistics, stochastic rounding or no gradient is wanted; `cluster_size`: "
      "what the device allows, by default that of Hopper; bank_dtype "
      "None: labels instead of a bank. ValueError where no kernel exists.");
}

}  // namespace alr_fast
