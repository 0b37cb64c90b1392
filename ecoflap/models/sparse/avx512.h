/* Words of 16 or 32 weights (float, bfloat16), which an instruction expands. */
#include <immintrin.h>
#include <stdint.h>

#ifdef BF16
typedef uint16_t value;
typedef uint32_t word;
#define EXPAND _mm512_maskz_expand_epi16
#define MULTIPLY_ADD(weights, inputs, sum) _mm512_dpbf16_ps(sum, (__m512bh)(weights), (__m512bh)(inputs))
#else
typedef float value;
typedef uint16_t word;
#define EXPAND _mm512_maskz_expand_epi32
#define MULTIPLY_ADD(weights, inputs, sum)                                                                             \
    _mm512_fmadd_ps(_mm512_castsi512_ps(weights), _mm512_castsi512_ps(inputs), sum)
/* Vectors of tokens. In bfloat16 torch's dense product, two columns at a time, is faster. */
#define FLOATS 16
#define IN_FLIGHT 4 /* additions that a processor makes at the same time */
#define BROADCAST(value) _mm512_set1_ps(*(value))
#define ADD_PRODUCT _mm512_fmadd_ps
#define ADD _mm512_add_ps
#define LOAD_SUMS _mm512_load_ps
#define STORE_SUMS _mm512_store_ps
#endif
typedef value input;
typedef __m512i vector;
typedef __m512 sums;
#define MOST_SUMS 16 /* of 32 registers */
#define ZEROS _mm512_setzero_ps()
#define LOAD _mm512_loadu_si512
#define STORE _mm512_storeu_si512
#define TOTAL _mm512_reduce_add_ps

static inline int supported_here(void) {
    int found = __builtin_cpu_supports("avx512f");
#ifdef BF16
    found = found && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2") &&
            __builtin_cpu_supports("avx512bf16");
#endif
    return found;
}

static inline vector expand(word mask, const value *values) {
    vector packed = _mm512_loadu_si512(values);
    __asm__("" : "+v"(packed)); /* an expansion that reads memory itself takes twice as long on Zen 5 */
    return EXPAND(mask, packed);
}
