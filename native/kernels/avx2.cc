// AVX2 with FMA (Haswell, Zen and later).
#include <immintrin.h>

#include "kernels/integer_only.h"
#include "kernels/kernels.h"

namespace flyweight {
namespace {

// vpmaddubsw multiplies unsigned by signed bytes and adds pairs to 16 bits: |w| is the unsigned one, and the activation
// takes the sign of w. A pair is at most 2 * 128 * 127 = 32,512 < 2^15, so nothing saturates; vpmaddwd by ones adds
// pairs again. Widening to 16 bits takes as many multiplications (2 for 32 products), and the widening on top.
struct Product {
  static constexpr int kOffset = 0, kForms = 2, kRows = 4;
  static __m256i prepare(__m256i w, int form) { return form ? _mm256_abs_epi8(w) : w; }
  static __m256i add(__m256i sum, const __m256i* w, __m256i q) {
    const __m256i pairs = _mm256_maddubs_epi16(w[1], _mm256_sign_epi8(q, w[0]));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

#include "kernels/avx2.inc"

constexpr Kernels kKernels = {"avx2", embed, add_norm, quantize, multiply, multiply_to_int8,
                              multiply_float, attend, attend_integers, mean, most, lstm_cells,
                              multiply_one, nullptr, false, &kIntegers};

}  // namespace

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace flyweight
