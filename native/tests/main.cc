// flyweight_native_tests [part of a name]: runs the tests whose name holds it, or all; exit status 1 when one fails.
#include <cstring>
#include <exception>

#include "tests/check.h"

int main(int argc, char** argv) {
  const char* part = argc > 1 ? argv[1] : "";
  int n_run = 0, n_failed = 0;
  for (const check::Test& test : check::tests()) {
    if (!std::strstr(test.name, part)) continue;
    ++n_run;
    const int before = check::failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      check::fail(test.file, 0, std::string("threw: ") + error.what());
    }
    if (check::failures() == before) continue;
    ++n_failed;
    std::fprintf(stderr, "FAILED %s\n", test.name);
  }
  std::printf("%d native tests, %d failed\n", n_run, n_failed);
  return n_failed != 0 || n_run == 0;
}
