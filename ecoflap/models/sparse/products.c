/* Products with matrices of which only a bit per weight and the values that are not zero are stored.
 *
 * A row has a multiple of 32 columns, the first in the lowest bit. It is read in words: the values that belong to a
 * word are loaded at once and expanded to their places in a register, with zeros between them. The values of a row
 * begin at values[starts[row]]; behind the last value of the matrix 64 bytes must be readable.
 *
 * Compiled with -DBF16 values are bfloat16, otherwise float. Sums are float in both. Words, and how a processor
 * expands and multiplies them, are in a file for each set of instructions.
 */
#include <string.h>

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif
#define LANES (8 * (int)sizeof(word))
#define MOST_ROWS 4
#define AHEAD 2048 /* bytes of values that are prefetched */

int supported(void) { return supported_here() && __builtin_cpu_supports("popcnt"); }

/* The weights of a word; the values move on to those of the next one. */
static inline vector next(word mask, const value **values) {
    vector weights = expand(mask, *values);
    _mm_prefetch((const char *)*values + AHEAD, _MM_HINT_T0);
    *values += __builtin_popcount(mask);
    return weights;
}

/* y[tokens, rows] at `together` rows that lie `apart`, for fixed numbers of them and of tokens. */
static inline __attribute__((always_inline)) void some_rows(const int tokens, const int together, int64_t row,
                                                            int64_t apart, const word *mask, const value *values,
                                                            const int64_t *starts, const input *x, float *y,
                                                            int64_t rows, int64_t words) {
    const word *bits[MOST_ROWS];
    const value *kept[MOST_ROWS];
    sums sum[MOST_ROWS][MOST_SUMS];
    for (int i = 0; i < together; i++) {
        bits[i] = mask + (row + i * apart) * words;
        kept[i] = values + starts[row + i * apart];
        for (int token = 0; token < tokens; token++) sum[i][token] = ZEROS;
    }
    for (int64_t at = 0; at < words; at++) {
        vector weights[MOST_ROWS];
        for (int i = 0; i < together; i++) weights[i] = next(bits[i][at], &kept[i]);
        for (int token = 0; token < tokens; token++) {
            vector inputs = LOAD(x + (token * words + at) * LANES);
            for (int i = 0; i < together; i++) sum[i][token] = MULTIPLY_ADD(weights[i], inputs, sum[i][token]);
        }
    }
    for (int i = 0; i < together; i++)
        for (int token = 0; token < tokens; token++) y[token * rows + row + i * apart] = TOTAL(sum[i][token]);
}

/* Rows that share the inputs, as many as there are registers for their sums. They lie far apart, so that each is
 * followed in memory by its row of the next group. */
#define TOGETHER(tokens) (MOST_SUMS / (tokens) < MOST_ROWS ? MOST_SUMS / (tokens) : MOST_ROWS)
#define ALL_ROWS(tokens)                                                                                               \
    case tokens: {                                                                                                     \
        const int64_t groups = rows / TOGETHER(tokens);                                                                \
        _Pragma("omp parallel for schedule(static)") for (int64_t row = 0; row < groups; row++)                        \
            some_rows(tokens, TOGETHER(tokens), row, groups, mask, values, starts, x, y, rows, words);                 \
        for (int64_t row = groups * TOGETHER(tokens); row < rows; row++)                                               \
            some_rows(tokens, 1, row, 0, mask, values, starts, x, y, rows, words);                                     \
        break;                                                                                                         \
    }

/* y[tokens, rows] = x[tokens, cols] times the transposed matrix [rows, cols], for at most 8 tokens. */
void product(const word *mask, const value *values, const int64_t *starts, const input *x, float *y, int64_t rows,
             int64_t cols, int64_t tokens) {
    const int64_t words = cols / LANES;
    switch (tokens) {
        ALL_ROWS(1)
        ALL_ROWS(2)
        ALL_ROWS(3)
        ALL_ROWS(4)
        ALL_ROWS(5)
        ALL_ROWS(6)
        ALL_ROWS(7)
        ALL_ROWS(8)
    }
}

/* out[rows, wanted], the first columns of the matrix itself. */
void dense(const word *mask, const value *values, const int64_t *starts, value *out, int64_t rows, int64_t cols,
           int64_t wanted) {
    const int64_t words = cols / LANES;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const value *kept = values + starts[row];
        value *to = out + row * wanted, last[LANES];
        int64_t at = 0;
        for (; (at + 1) * LANES <= wanted; at++) STORE(to + at * LANES, next(mask[row * words + at], &kept));
        if (at * LANES < wanted) {
            STORE(last, next(mask[row * words + at], &kept));
            memcpy(to + at * LANES, last, (wanted - at * LANES) * sizeof(value));
        }
    }
}
