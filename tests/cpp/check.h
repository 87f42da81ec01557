// The smallest test framework: a failed CHECK prints a line and is counted; main returns the count.
#pragma once

#include <cstdio>
#include <string>

namespace test {

inline int& failures() {
  static int count = 0;
  return count;
}

inline int& checks() {
  static int count = 0;
  return count;
}

inline void report(bool is_good, const char* file, int line, const std::string& what) {
  ++checks();
  if (is_good) return;
  if (++failures() <= 40) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

inline int finish(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, checks(), failures());
  return failures() == 0 ? 0 : 1;
}

}  // namespace test

#define CHECK(condition) test::report(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
#define CHECK_MESSAGE(condition, message) \
  test::report(static_cast<bool>(condition), __FILE__, __LINE__, message)

// `expression` throws an Exception whose message holds `text`.
#define CHECK_THROWS(expression, Exception, text)                                 \
  do {                                                                            \
    std::string thrown = "nothing";                                               \
    bool is_thrown = false;                                                       \
    try {                                                                         \
      expression;                                                                 \
    } catch (const Exception& error) {                                            \
      thrown = error.what();                                                      \
      is_thrown = thrown.find(text) != std::string::npos;                         \
    }                                                                             \
    test::report(is_thrown, __FILE__, __LINE__, #expression " threw: " + thrown); \
  } while (false)
