/* Words of 8 weights, which a permutation from a table expands. Inputs are float, bfloat16 weights become float. */
#include <immintrin.h>
#include <stdint.h>

typedef uint8_t word;
typedef float input;
typedef __m256 vector;
typedef __m256 sums;
#define MOST_SUMS 8 /* of 16 registers */
#define ZEROS _mm256_setzero_ps()
#define LOAD _mm256_loadu_ps
#define MULTIPLY_ADD _mm256_fmadd_ps

/* Vectors of tokens. */
#define FLOATS 8
#define IN_FLIGHT 8 /* additions that a processor makes at the same time */
#define ADD_PRODUCT _mm256_fmadd_ps
#define ADD _mm256_add_ps
#define LOAD_SUMS _mm256_load_ps
#define STORE_SUMS _mm256_store_ps

/* MASKS is a table [256, 8] of what ENTRY gives for each mask and bit. BEFORE counts the values before the bit's. */
#define BEFORE(mask, bit) __builtin_popcount((mask) & ((1 << (bit)) - 1))
#define BITS(mask)                                                                                                     \
    {ENTRY(mask, 0), ENTRY(mask, 1), ENTRY(mask, 2), ENTRY(mask, 3),                                                   \
     ENTRY(mask, 4), ENTRY(mask, 5), ENTRY(mask, 6), ENTRY(mask, 7)}
#define MASKS_4(mask) BITS(mask), BITS(mask + 1), BITS(mask + 2), BITS(mask + 3)
#define MASKS_16(mask) MASKS_4(mask), MASKS_4(mask + 4), MASKS_4(mask + 8), MASKS_4(mask + 12)
#define MASKS_64(mask) MASKS_16(mask), MASKS_16(mask + 16), MASKS_16(mask + 32), MASKS_16(mask + 48)
#define MASKS {MASKS_64(0), MASKS_64(64), MASKS_64(128), MASKS_64(192)}

static inline int supported_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

#ifdef BF16
typedef uint16_t value;

/* Where the bytes of a float come from: two are zero (0x80), two are those of its value among the packed ones. */
#define PAIR(place) ((2 * (place) + 1) << 24 | 2 * (place) << 16 | 0x8080)
#define ENTRY(mask, bit) ((mask) >> (bit) & 1 ? PAIR(BEFORE(mask, bit)) : 0x80808080)
static const uint32_t bytes[256][8] __attribute__((aligned(32))) = MASKS;

static inline vector expand(word mask, const value *values) {
    __m256i packed = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)values));
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(packed, *(const __m256i *)bytes[mask]));
}

#define BROADCAST(value) _mm256_castsi256_ps(_mm256_set1_epi32((uint32_t)*(value) << 16))

static inline void STORE(value *out, vector weights) {
    __m256i halves = _mm256_srli_epi32(_mm256_castps_si256(weights), 16);
    halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0xd8);
    _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(halves));
}
#else
typedef float value;

/* Its place among the packed values, or -1 where a weight is zero. */
#define ENTRY(mask, bit) ((mask) >> (bit) & 1 ? BEFORE(mask, bit) : -1)
static const int8_t places[256][8] = MASKS;

static inline vector expand(word mask, const value *values) {
    __m256i place = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)places[mask]));
    __m256 moved = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), place);
    return _mm256_blendv_ps(moved, _mm256_setzero_ps(), _mm256_castsi256_ps(place));
}

#define STORE _mm256_storeu_ps
#define BROADCAST(value) _mm256_set1_ps(*(value))
#endif

static inline float TOTAL(sums all) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
