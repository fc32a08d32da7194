/* Read n bytes once, as `streams` far-apart sequential streams in turn; the sum keeps the loads alive.
   cc -O3 -march=native -shared -fPIC read_streams.c -o read_streams.so   (floor.py does it) */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t vector __attribute__((vector_size(64)));
enum { PIECE = 4 }; /* vectors of one stream before the next stream's turn: 256 bytes */

#define READ(S)                                                                   \
    {                                                                             \
        const size_t part = vectors / (S);                                        \
        vector sum[S] = {0};                                                      \
        for (size_t i = 0; i + PIECE <= part; i += PIECE)                         \
            for (int s = 0; s < (S); s++) {                                       \
                const vector *at = data + s * part + i;                           \
                for (int k = 0; k < PIECE; k++) {                                 \
                    __builtin_prefetch(at + k + 16);                              \
                    sum[s] ^= at[k];                                              \
                }                                                                 \
            }                                                                     \
        for (int s = 0; s < (S); s++) total ^= sum[s];                            \
    }

uint64_t read_streams(const void *bytes, size_t n, int streams) {
    const vector *data = bytes;
    const size_t vectors = n / sizeof(vector);
    vector total = {0};
    switch (streams) {
    case 1: READ(1) break;
    case 2: READ(2) break;
    case 4: READ(4) break;
    default: READ(8) break;
    }
    uint64_t found = 0;
    for (int k = 0; k < 8; k++) found ^= total[k];
    return found;
}
