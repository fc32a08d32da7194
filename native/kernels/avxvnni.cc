// AVX2 with AVX-VNNI (Alder Lake and later clients, Sierra Forest, Zen 5): vpdpbusd does in one operation what
// AVX2 does in four.
#include <immintrin.h>

#include "kernels/integer_only.h"
#include "kernels/kernels.h"

namespace flyweight {
namespace {

// Activations are the unsigned bytes (q + 128); 128 * (sum of the row's weights) is subtracted from the exact sum.
struct Product {
  static constexpr int kOffset = 128, kForms = 1, kRows = 6;
  static __m256i prepare(__m256i w, int) { return w; }
  static __m256i add(__m256i sum, const __m256i* w, __m256i q) { return _mm256_dpbusd_avx_epi32(sum, q, w[0]); }
};

#include "kernels/avx2.inc"

constexpr Kernels kKernels = {"avx-vnni", embed, add_norm, quantize, multiply, multiply_to_int8,
                              multiply_float, attend, attend_integers, mean, most, lstm_cells,
                              multiply_one, row_sums, false, &kIntegers};

}  // namespace

const Kernels* avxvnni_kernels() { return &kKernels; }

}  // namespace flyweight
