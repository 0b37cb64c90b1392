/* Products with matrices of which only a bit per weight and the values that are not zero are stored.
 *
 * A row has a multiple of 64 columns, the first in the lowest bit. The values of a row begin at values[starts[row]];
 * behind the last value of the matrix 64 bytes must be readable.
 *
 * For a few tokens a row is read in words: the values that belong to a word are loaded at once and expanded to their
 * places in a register, with zeros between them. For more tokens a vector holds one column of the inputs for several
 * tokens, each value is multiplied with the vectors of its column, and zeros cost nothing.
 *
 * Compiled with -DBF16 values are bfloat16, otherwise float. Sums are float in both. Words, and how a processor
 * expands and multiplies them, are in a file for each set of instructions.
 */
#ifdef __clang__
#error "threads of clang compete with those of torch, which makes products slower than dense ones; use gcc"
#endif
#include <string.h>

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif
#define LANES (8 * (int)sizeof(word))
#define MOST_ROWS 4
#define AHEAD 2048 /* bytes of values that are prefetched */

int supported(void) {
    return supported_here() && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi");
}

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

static void few_tokens(const word *mask, const value *values, const int64_t *starts, const input *x, float *y,
                       int64_t rows, int64_t words, int64_t tokens) {
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

#ifdef FLOATS
#define BLOCK 64 /* tokens at a time */
#define MOST_VECTORS (BLOCK / FLOATS)
#define GROUP 16 /* rows that take turns with the same columns of the inputs */
#define SPAN 2   /* 64 bits of a row at a turn: their columns of the inputs fill the first cache */
/* Sums of which each gets every so many values of a row, so that an addition needn't wait for the one before. */
#define CHAINS(vectors) ((IN_FLIGHT + (vectors) - 1) / (vectors))

/* sum[vectors] plus the next value of a row times its column of x[64, tokens]. */
static inline __attribute__((always_inline)) void add_one(const int vectors, uint64_t *mask, const value **kept,
                                                          const float *x, sums *sum) {
    const float *column = x + __builtin_ctzll(*mask) * vectors * FLOATS;
    sums weight = BROADCAST((*kept)++);
    for (int i = 0; i < vectors; i++) sum[i] = ADD_PRODUCT(weight, LOAD_SUMS(column + i * FLOATS), sum[i]);
    *mask &= *mask - 1;
}

/* totals[vectors] plus the next values of a row, of which mask[words] has the bits, times their columns of x. The same
 * values of the row that lies `ahead` are prefetched. */
static inline __attribute__((always_inline)) void add_span(const int vectors, const uint64_t *mask, int64_t words,
                                                           const value **kept, int64_t ahead, const float *x,
                                                           float *totals) {
    sums sum[IN_FLIGHT][MOST_VECTORS];
    for (int chain = 0; chain < CHAINS(vectors); chain++)
        for (int i = 0; i < vectors; i++) sum[chain][i] = chain ? ZEROS : LOAD_SUMS(totals + i * FLOATS);
    for (int64_t at = 0; at < words; at++, x += 64 * vectors * FLOATS) {
        uint64_t left = mask[at];
        int count = __builtin_popcountll(left);
        _mm_prefetch((const char *)(*kept + ahead), _MM_HINT_T0);
        _mm_prefetch((const char *)(*kept + ahead) + 64, _MM_HINT_T0);
        for (; count >= CHAINS(vectors); count -= CHAINS(vectors))
            for (int chain = 0; chain < CHAINS(vectors); chain++) add_one(vectors, &left, kept, x, sum[chain]);
        for (; count > 0; count--) add_one(vectors, &left, kept, x, sum[0]);
    }
    for (int i = 0; i < vectors; i++) {
        for (int chain = 1; chain < CHAINS(vectors); chain++) sum[0][i] = ADD(sum[0][i], sum[chain][i]);
        STORE_SUMS(totals + i * FLOATS, sum[0][i]);
    }
}

/* y[tokens, rows] at the rows of a group, for a fixed number of vectors of tokens. x is [cols, vectors of tokens]. */
static inline __attribute__((always_inline)) void some_tokens(const int vectors, int64_t first, int64_t rows,
                                                              const uint64_t *mask, const value *values,
                                                              const int64_t *starts, const float *x, float *y,
                                                              int64_t words, int64_t tokens) {
    const int64_t last = first + GROUP < rows ? first + GROUP : rows;
    float totals[GROUP][BLOCK] __attribute__((aligned(64))) = {0};
    const value *kept[GROUP];
    for (int64_t row = first; row < last; row++) kept[row - first] = values + starts[row];
    for (int64_t span = 0; span < words; span += SPAN)
        for (int64_t row = first; row < last; row++)
            add_span(vectors, mask + row * words + span, span + SPAN < words ? SPAN : words - span, &kept[row - first],
                     row + GROUP < rows ? starts[row + GROUP] - starts[row] : 0, x + span * 64 * vectors * FLOATS,
                     totals[row - first]);
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t row = first; row < last; row++) y[token * rows + row] = totals[row - first][token];
}
#define ALL_GROUPS(vectors)                                                                                            \
    case vectors:                                                                                                      \
        _Pragma("omp for schedule(static)") for (int64_t row = 0; row < rows; row += GROUP)                            \
            some_tokens(vectors, row, rows, mask, values, starts, columns, y, words, tokens);                          \
        break;

/* y[tokens, rows] for at most a block of tokens; columns is scratch of [cols, BLOCK]. */
static void block_of_tokens(const uint64_t *mask, const value *values, const int64_t *starts, const float *x, float *y,
                            float *columns, int64_t rows, int64_t words, int64_t tokens) {
    const int64_t cols = 64 * words, vectors = (tokens + FLOATS - 1) / FLOATS, width = vectors * FLOATS;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < cols; begin += 16)
            for (int64_t token = 0; token < width; token++)
                for (int64_t col = begin; col < begin + 16; col++)
                    columns[col * width + token] = token < tokens ? x[token * cols + col] : 0;
        switch (vectors) {
            ALL_GROUPS(1)
            ALL_GROUPS(2)
            ALL_GROUPS(3)
            ALL_GROUPS(4)
#if MOST_VECTORS == 8
            ALL_GROUPS(5)
            ALL_GROUPS(6)
            ALL_GROUPS(7)
            ALL_GROUPS(8)
#endif
        }
    }
}
#endif

/* y[tokens, rows] = x[tokens, cols] times the transposed matrix [rows, cols]. For more than 8 tokens, which take
 * vectors of tokens, columns is scratch of [cols, BLOCK]. */
void product(const void *mask, const value *values, const int64_t *starts, const input *x, float *y, float *columns,
             int64_t rows, int64_t cols, int64_t tokens) {
    if (tokens <= 8) few_tokens(mask, values, starts, x, y, rows, cols / LANES, tokens);
#ifdef FLOATS
    else
        for (int64_t token = 0; token < tokens; token += BLOCK)
            block_of_tokens(mask, values, starts, x + token * cols, y + token * rows, columns, rows, cols / 64,
                            tokens - token < BLOCK ? tokens - token : BLOCK);
#endif
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
