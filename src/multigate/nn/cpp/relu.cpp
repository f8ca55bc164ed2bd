// ReLU, and what it does to gradients.

#include "numbers.h"

namespace {

constexpr int64_t LONG = 2048; // rows at a time where nothing but a row is held

// Of what a number is written as, so that choosing is arithmetic on whole words.
inline uint32_t* words(float* x) { return reinterpret_cast<uint32_t*>(x); }
inline uint16_t* words(bfloat16* x) { return reinterpret_cast<uint16_t*>(x); }

// All ones where a number is above 0 or none, else all zeros.
template <typename Word> inline Word above(Word word, Word sign, Word infinite) {
    return -Word((word != 0) & ((word < sign) | (word > Word(sign | infinite))));
}
inline uint32_t above(uint32_t word) { return above<uint32_t>(word, 0x80000000u, 0x7f800000u); }
inline uint16_t above(uint16_t word) { return above<uint16_t>(word, 0x8000u, 0x7f80u); }

// x = max(x, 0), in place; what is no number stays none, as in torch
template <typename T> void relu(T* x, int64_t many, int threads) {
    auto* word = words(x);
#pragma omp parallel for schedule(static) num_threads(threads) if (many > FEW)
    for (int64_t i = 0; i < many; ++i) word[i] &= above(word[i]);
}

// x[unit, :] = max(x[unit, :] + bias[unit], 0), in place
template <typename T>
void relu_of_sum(T* x, const T* bias, int64_t units, int64_t lanes, int threads) {
    const int64_t tiles = (lanes + LONG - 1) / LONG;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (units * lanes > FEW)
    for (int64_t unit = 0; unit < units; ++unit)
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = tile * LONG, many = std::min(LONG, lanes - first);
            const float more = wide(bias[unit]);
            T* row = x + unit * lanes + first;
            auto* word = words(row);
            for (int64_t i = 0; i < many; ++i) narrow(wide(row[i]) + more, row[i]);
            for (int64_t i = 0; i < many; ++i) word[i] &= above(word[i]);
        }
}

// dx = 0 where x <= 0, in place
template <typename T> void mask(T* dx, T* x, int64_t many, int threads) {
    auto *word = words(dx), *of = words(x);
#pragma omp parallel for schedule(static) num_threads(threads) if (many > FEW)
    for (int64_t i = 0; i < many; ++i) word[i] &= above(of[i]);
}

} // namespace

#define EACH(T)                                                                                                        \
    extern "C" void relu_##T(T* x, int64_t many, int threads) { relu(x, many, threads); }                              \
    extern "C" void relu_of_sum_##T(T* x, const T* bias, int64_t units, int64_t lanes, int threads) {                  \
        relu_of_sum(x, bias, units, lanes, threads);                                                                   \
    }                                                                                                                  \
    extern "C" void mask_##T(T* dx, T* x, int64_t many, int threads) { mask(dx, x, many, threads); }

EACH(float32)
EACH(bfloat16)
