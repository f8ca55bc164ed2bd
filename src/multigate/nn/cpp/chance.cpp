// Random numbers, each made by itself.

#include "numbers.h"

// SplitMix64 (Steele, Lea and Flood 2014)
extern "C" void scatter_float32(const uint64_t* seed, uint64_t* made, int64_t many, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (many > FEW)
    for (int64_t i = 0; i < many; ++i) {
        uint64_t z = *seed + uint64_t(i + 1) * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        made[i] = z ^ (z >> 31);
    }
}
