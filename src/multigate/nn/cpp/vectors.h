// A tile of a row as vectors, and what of e^x is made of it.

#pragma once

#include "numbers.h"

namespace {

typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
constexpr int64_t VECTORS = TILE / LANES; // of a tile

// Of two vectors, the numbers of the first where all bits of ``where`` are ones, of the second where they are zeros
inline Vector chosen(Words where, Vector one, Vector other) {
    return (Vector)((where & (Words)one) | (~where & (Words)other));
}

// Rows as vectors of a tile; what it has no rows for are zeros, or as ``rest`` says
template <typename T> inline void take(const T* from, int64_t many, Vector* to, const Vector* rest = nullptr) {
    float* number = reinterpret_cast<float*>(to);
    if (many == TILE) { // of most tiles: that many is known when this is compiled
        for (int64_t i = 0; i < TILE; ++i) number[i] = wide(from[i]);
        return;
    }
    if (rest)
        std::copy_n(rest, VECTORS, to);
    else
        std::fill(to, to + VECTORS, Vector{});
    for (int64_t i = 0; i < many; ++i) number[i] = wide(from[i]);
}

template <typename T> inline void give(const Vector* from, int64_t many, T* to) {
    const float* number = reinterpret_cast<const float*>(from);
    if (many == TILE)
        for (int64_t i = 0; i < TILE; ++i) narrow(number[i], to[i]);
    else
        for (int64_t i = 0; i < many; ++i) narrow(number[i], to[i]);
}

// The sum of numbers that lie one after the other
template <int MANY> inline float total(const float* x) { // halves are added, and halves of those
    typedef float Half __attribute__((vector_size(MANY / 2 * sizeof(float))));
    Half one, other;
    std::memcpy(&one, x, sizeof one);
    std::memcpy(&other, x + MANY / 2, sizeof other);
    one += other;
    return total<MANY / 2>(reinterpret_cast<const float*>(&one));
}
template <> inline float total<2>(const float* x) { return x[0] + x[1]; }

// e^x to 2e-7 of it, of x from -87 to 88: 2^n times a polynomial of what is left; what is no number stays none
inline Vector exponential(Vector x) {
    const Vector least = Vector{} - 87.0f, most = Vector{} + 88.0f;
    x = most < x ? most : x;
    x = least > x ? least : x;
    constexpr float WHOLE = 12582912.0f; // 1.5 * 2^23: a number added to it is rounded to a whole one, its lowest bits
    const Vector shifted = x * 1.44269504f + WHOLE, n = shifted - WHOLE;
    const Vector left = (x - n * 0.693145752f) - n * 1.42860677e-6f; // n times log 2, in two parts
    Vector series = left * 8.31252e-3f + 4.189016e-2f; // of least relative error, by 1 + x + x^2 times these four
    series = series * left + 0.16667115f;
    series = series * left + 0.49999231f;
    series = series * left + 1.0f;
    series = series * left + 1.0f;
    return series * (Vector)(((Words)shifted + 127u) << 23);
}

} // namespace
