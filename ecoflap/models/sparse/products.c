/* Products with matrices of which only a bit per weight and the values that are not zero are stored.
 *
 * Each row is read in words of LANES bits, the first weight in the lowest bit. The values that belong to a word
 * are loaded at once and expanded to their places, with zeros between them, in a register of 512 bits. The
 * values of a row begin at values[starts[row]]; behind the last value of the matrix 64 bytes must be readable.
 *
 * Compiled with -DBF16 values and inputs are bfloat16, otherwise float. Sums are float in both.
 */
#include <immintrin.h>
#include <stdint.h>

#ifdef BF16
#define LANES 32
typedef uint16_t value;
typedef uint32_t word;
#define EXPAND _mm512_maskz_expand_epi16
#define MULTIPLY_ADD(sum, one, other) _mm512_dpbf16_ps(sum, (__m512bh)(one), (__m512bh)(other))
#define STORE _mm512_mask_storeu_epi16
#else
#define LANES 16
typedef float value;
typedef uint16_t word;
#define EXPAND _mm512_maskz_expand_epi32
#define MULTIPLY_ADD(sum, one, other) _mm512_fmadd_ps(_mm512_castsi512_ps(one), _mm512_castsi512_ps(other), sum)
#define STORE _mm512_mask_storeu_epi32
#endif
#define MOST 8     /* tokens; the sums of more do not fit in the registers */
#define AHEAD 2048 /* bytes of values that are prefetched */

int supported(void) {
    int found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt");
#ifdef BF16
    found = found && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2") &&
            __builtin_cpu_supports("avx512bf16");
#endif
    return found;
}

/* The LANES weights of a word; the values move on to those of the next one. */
static inline __m512i expand(word mask, const value **values) {
    __m512i packed = _mm512_loadu_si512(*values);
    __asm__("" : "+v"(packed)); /* an expansion that reads memory itself takes twice as long on Zen 5 */
    _mm_prefetch((const char *)*values + AHEAD, _MM_HINT_T0);
    *values += __builtin_popcount(mask);
    return EXPAND(mask, packed);
}

/* y[token * rows], of one row, for a fixed number of tokens; x is [tokens, words * LANES]. */
static inline __attribute__((always_inline)) void row_product(const int tokens, const word *mask, const value *values,
                                                              const value *x, float *y, int64_t rows, int64_t words) {
    __m512 even[MOST], odd[MOST];
    for (int token = 0; token < tokens; token++) even[token] = odd[token] = _mm512_setzero_ps();
    int64_t at = 0;
    for (; at + 2 <= words; at += 2) {
        __m512i first = expand(mask[at], &values), second = expand(mask[at + 1], &values);
        for (int token = 0; token < tokens; token++) {
            const value *inputs = x + (token * words + at) * LANES;
            even[token] = MULTIPLY_ADD(even[token], first, _mm512_loadu_si512(inputs));
            odd[token] = MULTIPLY_ADD(odd[token], second, _mm512_loadu_si512(inputs + LANES));
        }
    }
    if (at < words) {
        __m512i last = expand(mask[at], &values);
        for (int token = 0; token < tokens; token++)
            even[token] = MULTIPLY_ADD(even[token], last, _mm512_loadu_si512(x + (token * words + at) * LANES));
    }
    for (int token = 0; token < tokens; token++)
        y[token * rows] = _mm512_reduce_add_ps(_mm512_add_ps(even[token], odd[token]));
}

/* y[tokens, rows] = x[tokens, words * LANES] times the transposed matrix [rows, words * LANES], for at most MOST
 * tokens. */
void product(const word *mask, const value *values, const int64_t *starts, const value *x, float *y, int64_t rows,
             int64_t words, int64_t tokens) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const word *bits = mask + row * words;
        const value *kept = values + starts[row];
        switch (tokens) {
        case 1: row_product(1, bits, kept, x, y + row, rows, words); break;
        case 2: row_product(2, bits, kept, x, y + row, rows, words); break;
        case 3: row_product(3, bits, kept, x, y + row, rows, words); break;
        case 4: row_product(4, bits, kept, x, y + row, rows, words); break;
        case 5: row_product(5, bits, kept, x, y + row, rows, words); break;
        case 6: row_product(6, bits, kept, x, y + row, rows, words); break;
        case 7: row_product(7, bits, kept, x, y + row, rows, words); break;
        case MOST: row_product(MOST, bits, kept, x, y + row, rows, words);
        }
    }
}

/* out[rows, cols], the matrix itself. */
void dense(const word *mask, const value *values, const int64_t *starts, value *out, int64_t rows, int64_t words,
           int64_t cols) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const value *kept = values + starts[row];
        for (int64_t at = 0; at < words; at++) {
            int64_t left = cols - at * LANES;
            word there = left < LANES ? ((word)1 << left) - 1 : (word)-1;
            STORE(out + row * cols + at * LANES, there, expand(mask[row * words + at], &kept));
        }
    }
}
