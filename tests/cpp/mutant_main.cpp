// Runs the cases with a mutant of csrc, of which one must fail (argument "fails"), or with an
// unchanged copy, of which none may ("passes").
#include <cstdio>
#include <cstring>
#include <string>

#include "first_error.h"

int main(int argc, char** argv) {
  const bool must_fail = argc > 1 && std::strcmp(argv[1], "fails") == 0;
  const std::string wrong = test::first_error();
  std::printf("%s\n", wrong.empty() ? "nothing is wrong" : wrong.c_str());
  return wrong.empty() == must_fail ? 1 : 0;
}
