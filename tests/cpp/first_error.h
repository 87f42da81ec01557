// What the kernels of a file of cases do wrong. An executable has one such file: a test, whose
// kernels must do nothing wrong, or a mutant, one of whose must.
#pragma once

#include <string>

namespace test {

// Describes the first error; empty if there is none.
std::string first_error();

}  // namespace test
