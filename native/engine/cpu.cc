#include "engine/cpu.h"

#if defined(__x86_64__) || defined(_M_X64)
#define FLYWEIGHT_X86 1
#include <xmmintrin.h>
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

namespace flyweight {
namespace {

#ifdef FLYWEIGHT_X86

struct Registers {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t part) {
  Registers r;
#ifdef _MSC_VER
  int out[4];
  __cpuidex(out, int(leaf), int(part));
  r = {std::uint32_t(out[0]), std::uint32_t(out[1]), std::uint32_t(out[2]), std::uint32_t(out[3])};
#else
  __get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

// Which registers the system saves: bit 1 SSE, 2 AVX, 5..7 AVX-512, 17..18 AMX tiles.
std::uint64_t saved_registers() {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  std::uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t(high) << 32 | low;
#endif
}

bool has(std::uint32_t word, int bit) { return word >> bit & 1; }

struct Features {
  bool avx2 = false, avxvnni = false, avx512vnni = false, amx = false;

  Features() {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    if (!has(one.c, 27)) return;  // OSXSAVE
    const std::uint64_t saved = saved_registers();
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
    avx2 = ymm && has(one.c, 28) && has(one.c, 12) && has(seven.b, 5);  // AVX, FMA, AVX2
    avxvnni = avx2 && has(seven_one.a, 4);
    const bool avx512 = has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31);  // F DQ BW VL
    avx512vnni = avx2 && zmm && avx512 && has(seven.c, 1) && has(seven.c, 6) && has(seven.c, 11);      // VBMI, VBMI2, VNNI
    amx = avx512vnni && tiles && has(seven.d, 24) && has(seven.d, 25) && tiles_permitted();            // TILE, INT8
  }

  // Linux hands out the 8 KB of tile state only to processes that ask: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
  static bool tiles_permitted() {
#ifdef __linux__
    constexpr long kRequest = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
  }
};

const Features& features() {
  static const Features found;
  return found;
}

#endif

bool usable(const Kernels* level) {
  const std::string name = level->name;
  if (name == "scalar") return true;
#ifdef FLYWEIGHT_X86
  if (name == "avx2") return features().avx2;
  if (name == "avx-vnni") return features().avxvnni;
  if (name == "avx512-vnni") return features().avx512vnni;
  if (name == "amx-int8") return features().amx;
#elif defined(__aarch64__) && defined(__linux__)
  if (name == "neon-dotprod") return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__aarch64__) && defined(__APPLE__)
  if (name == "neon-dotprod") return true;  // every Apple chip has it
#endif
  return false;
}

#ifdef FLYWEIGHT_X86
constexpr std::uint64_t kDefault = 0x1f80;  // all exceptions masked, nearest even, no flush-to-zero
std::uint64_t control() { return _mm_getcsr(); }
void control(std::uint64_t to) { _mm_setcsr(std::uint32_t(to)); }
#elif defined(__aarch64__) && !defined(_MSC_VER)
constexpr std::uint64_t kDefault = 0;
std::uint64_t control() {
  std::uint64_t now;
  __asm__ volatile("mrs %0, fpcr" : "=r"(now));
  return now;
}
void control(std::uint64_t to) { __asm__ volatile("msr fpcr, %0" : : "r"(to)); }
#else
constexpr std::uint64_t kDefault = 0;
std::uint64_t control() { return 0; }
void control(std::uint64_t) {}
#endif

}  // namespace

std::vector<const Kernels*> built_levels() {
  return {
#ifdef FLYWEIGHT_HAVE_SCALAR
      scalar_kernels(),
#endif
#ifdef FLYWEIGHT_HAVE_NEON
      neon_kernels(),
#endif
#ifdef FLYWEIGHT_HAVE_AVX2
      avx2_kernels(),
#endif
#ifdef FLYWEIGHT_HAVE_AVXVNNI
      avxvnni_kernels(),
#endif
#ifdef FLYWEIGHT_HAVE_AVX512VNNI
      avx512vnni_kernels(),
#endif
#ifdef FLYWEIGHT_HAVE_AMX
      amx_kernels(),
#endif
  };
}

std::vector<const Kernels*> usable_levels() {
  std::vector<const Kernels*> found;
  for (const Kernels* level : built_levels())
    if (usable(level)) found.push_back(level);
  return found;
}

std::vector<const Kernels*> sparse_levels() {
  std::vector<const Kernels*> found;
  for (const Kernels* level : built_levels())
    if (level->sparse) found.push_back(level);
  return found;
}

FloatEnvironment::FloatEnvironment() : before_(control()) {
  if (before_ != kDefault) control(kDefault);
}

FloatEnvironment::~FloatEnvironment() {
  if (control() != before_) control(before_);
}

}  // namespace flyweight
