// What is no matmul in training and predicting, with the batch last in memory; numbers are float32 or bfloat16.
//
// Built without any header of torch, which takes a second. Every array is contiguous, and nothing is checked here.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

using float32 = float;

namespace {

constexpr int64_t TILE = 128;    // rows of a batch at a time: their sums and weights stay in the nearest cache
constexpr int64_t STREAM = 1024; // rows at a time where memory is what takes the time: long enough to be fetched ahead
constexpr int64_t FEW = 1 << 14; // multiply-adds that are not worth a second thread

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

struct bfloat16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float made;
    std::memcpy(&made, &bits, sizeof made);
    return made;
}

inline void narrow(float x, float& to) { to = x; }

inline void narrow(float x, bfloat16& to) { // to the nearest, ties to even; what is no number stays none
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to.bits = uint16_t(x == x ? rounded : 0x7fc0u);
}

} // namespace
