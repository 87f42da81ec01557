// Tests of the CPU kernels, and of the launch plan of the CUDA kernels, which needs no CUDA.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "check.h"
#include "cpu/cpu_kernels.h"
#include "cuda/launch_plan.h"
#include "row_loss_checks.h"

namespace {

using namespace alr_fast;

void run_serially(int64_t rows, int64_t, void (*f)(int64_t, int64_t, void*), void* context) {
  f(0, rows, context);
}

// In two chunks, as with two threads.
void run_in_pieces(int64_t rows, int64_t, void (*f)(int64_t, int64_t, void*), void* context) {
  f(0, rows / 2, context);
  f(rows / 2, rows, context);
}

void check_bad_rows() {
  float logits[4] = {1, 2, 3, 4}, table[4] = {.5f, .5f, .5f, .5f}, loss = 7, row_loss[2] = {7, 7},
        scale;
  const int64_t index[2] = {0, 2};
  RowLossParams params;
  params.logits = logits;
  params.logits_stride = params.classes = params.rows = 2;
  params.target.table = table;
  params.target.stride = params.target.size = 2;
  params.index.data = index;
  params.update = true;
  params.momentum = 0;
  params.row_loss = row_loss;
  params.loss = &loss;
  params.grad_scale = &scale;
  CHECK_THROWS(cpu_row_loss(params, run_serially), std::out_of_range, "index[1] is 2");
  CHECK(loss == 7 && row_loss[0] == 7 && table[0] == .5f);  // nothing was written
  params.target.table = nullptr;
  CHECK_THROWS(cpu_row_loss(params, run_serially), std::out_of_range, "labels[1] is 2");

  const int64_t good[2] = {1, 0}, far[2] = {0, 2};
  const int32_t given[2] = {0, 1};
  params.index.data = good;
  params.other.data = good;
  params.given_labels = given;
  params.samples = 2;
  cpu_row_loss(params, run_serially);
  loss = row_loss[0] = 7;
  params.other.data = far;
  CHECK_THROWS(cpu_row_loss(params, run_serially), std::invalid_argument,
               "labels[0] is 1, but sample 0 (index[0]) has the given label 0");
  params.index.data = given;
  params.index.is_int64 = false;
  CHECK_THROWS(cpu_row_loss(params, run_serially), std::out_of_range,
               "index[1] is 2, but there are 2 given labels");
  params.target.table = table;
  params.other = params.index;
  const int64_t other_given[2] = {1, 0};
  params.other.data = other_given;
  params.other.is_int64 = true;
  CHECK_THROWS(cpu_row_loss(params, run_serially), std::invalid_argument,
               "labels[0] is 1, but sample 0 (index[0]) has the given label 0");
  CHECK(loss == 7 && row_loss[0] == 7 && table[0] == .5f);
}

void check_no_rows() {
  float loss = 7, scale = 7;
  RowLossParams params;
  params.classes = 3;
  params.target.size = 3;
  params.loss = &loss;
  params.grad_scale = &scale;
  cpu_row_loss(params, run_serially);
  CHECK(loss == 0 && scale == 1);
  params.grad_mode = GradMode::kPerRow;
  params.logits_dtype = DType::kFloat16;
  params.stored_scale = 8;
  cpu_row_loss(params, run_serially);
  CHECK(scale == 1.f / 8);
}

// The environment is not read again: another thread may be changing it.
void check_chosen_once() {
  const CpuKernels& kernels = active_cpu_kernels();
  setenv("ALR_FAST_CPU_ISA", "no such set", 1);
  CHECK(&active_cpu_kernels() == &kernels);
}

void check_launch_plan() {
  const auto plan_of = [](int64_t rows, int64_t classes, int aligned = 16) {
    return launch_plan(rows, classes, DType::kFloat32, DType::kFloat32, aligned);
  };
  for (int64_t classes = 1; classes <= 262144; classes += classes < 20000 ? 1 : 997) {
    const LaunchPlan plan = plan_of(100, classes);
    CHECK(plan.threads_per_row * plan.rows_per_block ==
          plan.threads_per_block * plan.blocks_per_row);
    CHECK(plan.blocks * plan.rows_per_block >= 100 * plan.blocks_per_row &&
          (plan.blocks - 1) * plan.rows_per_block < 100 * plan.blocks_per_row);
    CHECK(plan.regime == Regime::kLoop ||
          int64_t{plan.threads_per_row} * plan.elements_per_thread >= classes);
    CHECK(columns_per_block(classes, plan.blocks_per_row) * plan.blocks_per_row >= classes);
    CHECK(plan.shared_memory <= 48 * 1024);  // what every device allows without being asked
    const int without = classes % 2 == 0 && classes <= 128 ? 2 : 1;
    CHECK(plan.vector_width == (classes % 4 == 0 ? 4 : without));
    // Every K has a kernel without clusters.
    const LaunchPlan small =
        launch_plan(100, classes, DType::kFloat32, DType::kBFloat16, 16, false, {1});
    CHECK(small.blocks_per_row == 1);
  }
  CHECK(plan_of(1, 1000, 2).vector_width == 1 && plan_of(1, 100, 2).vector_width == 2);
  CHECK(plan_of(1, 10).rows_per_block > 4 && plan_of(1, 100).threads_per_row == 16);
  CHECK(plan_of(3, 1000).blocks == 3 && plan_of(0, 10).blocks == 0);
  CHECK(std::string(shape_of(plan_of(1, 262144).regime).name) == "loop");
  CHECK(plan_of(int64_t{1} << 31, 10).blocks == int64_t{1} << 27);
  const LaunchPlan wide = launch_plan(64, 32, DType::kBFloat16, DType::kFloat32);
  CHECK(wide.vector_width == 8 && wide.threads_per_row == 4 && wide.rows_per_block == 32);
  RowLossParams params;
  params.classes = 8192;
  params.rows = 10;
  params.reduction = Reduction::kMean;
  CHECK(row_loss_size(params) >= 4 * launch_plan(params).blocks);
  CHECK_THROWS(plan_of(1, 0), std::invalid_argument, "classes is 0");
  CHECK_THROWS(plan_of(1, 262145), std::invalid_argument, "classes is 262145");
  CHECK_THROWS(plan_of(-1, 10), std::invalid_argument, "rows is -1");
  CHECK_THROWS(plan_of(int64_t{1} << 31, 1000), std::invalid_argument, "rows is 2147483648");
  CHECK_THROWS(launch_plan(1, 10, DType::kFloat64, DType::kFloat32), std::invalid_argument,
               "logits_dtype is float64");
}

void check_scale_grad_plan() {
  alignas(16) static const char memory[16] = {};
  ScaleGradParams params;
  params.grad_rows = memory;
  params.out = const_cast<char*>(memory);  // never written: only its alignment counts
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    params.dtype = dtype;
    const int full = dtype == DType::kFloat32 ? 4 : 8;
    for (int64_t rows : {1, 7, 300, 65536}) {
      for (int64_t classes : {1, 3, 14, 256, 1001, 131072}) {
        for (int stride : {0, 1}) {
          params.rows = rows;
          params.classes = classes;
          params.grad_output_stride = stride;
          const ScaleGradPlan plan = scale_grad_plan(params);
          CHECK(plan.params.rows * plan.params.classes == rows * classes);
          CHECK(plan.params.rows == (stride == 0 ? 1 : rows));
          const bool is_wide = plan.params.rows == 1 || classes % full == 0;
          CHECK(plan.vector_width == (is_wide ? full : 1));
          CHECK(plan.threads_per_row * plan.rows_per_block == 256);
          CHECK(plan.threads_per_row >= full);  // for the elements after the last whole vector
          CHECK(int64_t{plan.row_blocks} * plan.column_blocks <= 1024);
        }
      }
    }
  }
  params.dtype = DType::kFloat64;
  CHECK_THROWS(scale_grad_plan(params), std::invalid_argument, "grad_rows is float64");
}

}  // namespace

int main() {
  check_bad_rows();
  check_no_rows();
  check_chosen_once();
  check_launch_plan();
  check_scale_grad_plan();
  test::Backend backend;
  backend.is_cuda = false;
  // Around the sizes of vectors and of blocks of sums.
  backend.classes = {1,  2,  3,  7,  8,  9,   10,  11,  12,   13,   14,   15,   16,  17,
                     31, 32, 33, 50, 63, 100, 257, 512, 1000, 1023, 1024, 1025, 5003};
  for (const CpuKernels& kernels : compiled_cpu_kernels()) {
    if (!kernels.is_supported()) continue;
    backend.name = kernels.name;
    backend.row_loss = [&](const RowLossParams& params) {
      cpu_row_loss(params, run_in_pieces, kernels);
    };
    backend.scale_grad = [&](const ScaleGradParams& params) {
      cpu_scale_grad(params, run_in_pieces, kernels);
    };
    check_sizes(backend);
    check_options(backend);
    check_mutants(backend);
    check_rounding(backend);
    check_scale_grad(backend);
    std::printf("%s checked\n", kernels.name);
  }
  return test::finish("test_row_loss");
}
