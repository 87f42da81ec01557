// Cases of which each mutant of the shipped kernels (mutants.txt) fails one. Compiled once for all
// mutants: nothing here depends on csrc/cuda but for the launch plan.
#pragma once

#include <string>

namespace test {

// Describes the first error that test::run_row_loss makes; empty if there is none.
std::string wrong_in_row_losses();

}  // namespace test
