// A test is TEST(name) { CHECK(...); }. It runs without being listed anywhere; main.cc runs all of them.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace check {

struct Test {
  const char* name;
  const char* file;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registered {
  Registered(const char* name, const char* file, void (*run)()) { tests().push_back({name, file, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// Numbers as numbers (an int8 is no letter), strings in quotes, anything with begin() and end() as a list.
template <class T>
void show(std::ostream& out, const T& value) {
  if constexpr (std::is_convertible_v<T, std::string_view>) {
    out << '\'' << std::string_view(value) << '\'';
  } else if constexpr (std::is_arithmetic_v<T>) {
    out << +value;
  } else if constexpr (std::is_enum_v<T>) {
    out << +static_cast<std::underlying_type_t<T>>(value);
  } else {
    const char* between = "[";
    for (const auto& item : value) {
      out << between;
      show(out, item);
      between = ", ";
    }
    out << (between[0] == '[' ? "[]" : "]");
  }
}

template <class A, class B>
void equal(const A& found, const B& wanted, const char* text, const char* file, int line) {
  if (found == wanted) return;
  std::ostringstream what;
  what.precision(17);
  what << text << " is ";
  show(what, found);
  what << ", wanted ";
  show(what, wanted);
  fail(file, line, what.str());
}

}  // namespace check

#define TEST(name)                                                                \
  static void test_##name();                                                      \
  static const check::Registered registered_##name(#name, __FILE__, test_##name); \
  static void test_##name()

// Does not stop the test: the rest of its checks run too.
#define CHECK(...) \
  do { \
    if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, "not true: " #__VA_ARGS__); \
  } while (false)

// Numbers, strings or lists of them; shows both sides when they differ.
#define CHECK_EQUAL(found, wanted) check::equal((found), (wanted), #found, __FILE__, __LINE__)

// The expression throws `type`, and its what() contains `part`.
#define CHECK_THROWS(expression, type, part)                                                               \
  do {                                                                                                     \
    bool thrown = false;                                                                                   \
    try {                                                                                                  \
      (void)(expression);                                                                                  \
    } catch (const type& error) {                                                                          \
      thrown = true;                                                                                       \
      if (std::string(error.what()).find(part) == std::string::npos)                                       \
        check::fail(__FILE__, __LINE__, std::string(#expression " said '") + error.what() + "', not " part); \
    }                                                                                                      \
    if (!thrown) check::fail(__FILE__, __LINE__, #expression " threw no " #type);                          \
  } while (false)
