// Sums of products: what readers make of their sources, with gradients.

#include "numbers.h"

namespace {

// sum_i w[i * next_w + .] * wide(x[i * next_x + .]) of ``terms`` rows, a tile wide: sums stay in registers
template <int64_t MANY, typename W, typename T>
inline void sum_of_products(const W* w, int64_t next_w, const T* x, int64_t next_x, int64_t terms, float* sum) {
    float held[MANY] = {};
    for (int64_t i = 0; i < terms; ++i)
        for (int64_t lane = 0; lane < MANY; ++lane) held[lane] += wide(w[i * next_w + lane]) * wide(x[i * next_x + lane]);
    std::copy_n(held, MANY, sum);
}

template <typename W, typename T>
inline void sum_of_products(const W* w, int64_t next_w, const T* x, int64_t next_x, int64_t terms, float* sum,
                            int64_t many) {
    int64_t lane = 0;
    for (; lane + 64 <= many; lane += 64) sum_of_products<64>(w + lane, next_w, x + lane, next_x, terms, sum + lane);
    for (; lane + 16 <= many; lane += 16) sum_of_products<16>(w + lane, next_w, x + lane, next_x, terms, sum + lane);
    for (; lane < many; ++lane) sum_of_products<1>(w + lane, next_w, x + lane, next_x, terms, sum + lane);
}

// z[t, h, b] = sum_e w[t, e, b] x[e, h, b]
template <typename T>
void mix(const float* w, const T* x, T* z, int64_t t, int64_t e, int64_t h, int64_t b, int threads) {
    const int64_t tiles = (b + STREAM - 1) / STREAM;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (t * e * h * b > FEW)
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t unit = 0; unit < h; ++unit) {
            const int64_t first = tile * STREAM, many = std::min(STREAM, b - first);
            float sum[STREAM];
            for (int64_t reader = 0; reader < t; ++reader) {
                sum_of_products(w + reader * e * b + first, b, x + unit * b + first, h * b, e, sum, many);
                T* made = z + (reader * h + unit) * b + first;
                for (int64_t i = 0; i < many; ++i) narrow(sum[i], made[i]);
            }
        }
}

// dx += w dz and dw += dz x, a row of each; the first writes dx
template <bool FIRST, typename T>
inline void pull_back(const float* w, const T* dz, const T* x, float* dx, float* dw, int64_t many) {
    for (int64_t i = 0; i < many; ++i) {
        const float pull = wide(dz[i]);
        dx[i] = FIRST ? w[i] * pull : dx[i] + w[i] * pull;
        dw[i] += pull * wide(x[i]);
    }
}

// dx[e, h, b] = sum_t w[t, e, b] dz[t, h, b] and dw[t, e, b] = sum_h dz[t, h, b] x[e, h, b]
template <typename T>
void unmix(const float* w, const T* x, const T* dz, T* dx, float* dw, int64_t t, int64_t e, int64_t h, int64_t b,
           int threads) {
    int64_t tile = STREAM;
    while (tile > TILE && (b + tile - 1) / tile * e < 2 * threads) tile /= 2;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (t * e * h * b > FEW)
    for (int64_t first = 0; first < b; first += tile)
        for (int64_t source = 0; source < e; ++source) {
            const int64_t many = std::min(tile, b - first), next = e * b, at = source * b + first;
            float sum[STREAM] = {};
            for (int64_t reader = 0; reader < t; ++reader) std::fill_n(dw + reader * next + at, many, 0.0f);
            for (int64_t unit = 0; unit < h; ++unit) {
                const T *pull = dz + unit * b + first, *read = x + (source * h + unit) * b + first;
                for (int64_t reader = 0; reader < t; ++reader) {
                    const auto back = reader == 0 ? pull_back<true, T> : pull_back<false, T>;
                    back(w + reader * next + at, pull + reader * h * b, read, sum, dw + reader * next + at, many);
                }
                T* made = dx + (source * h + unit) * b + first;
                for (int64_t i = 0; i < many; ++i) narrow(sum[i], made[i]);
            }
        }
}

} // namespace

#define EACH(T)                                                                                                        \
    extern "C" void mix_##T(const float* w, const T* x, T* z, int64_t t, int64_t e, int64_t h, int64_t b,              \
                            int threads) {                                                                             \
        mix(w, x, z, t, e, h, b, threads);                                                                             \
    }                                                                                                                  \
    extern "C" void unmix_##T(const float* w, const T* x, const T* dz, T* dx, float* dw, int64_t t, int64_t e,         \
                              int64_t h, int64_t b, int threads) {                                                     \
        unmix(w, x, dz, dx, dw, t, e, h, b, threads);                                                                  \
    }

EACH(float32)
EACH(bfloat16)

// out[i, j, k, :] = sum_t a[i, j, k, t, :] * b[i, j, k, t, :] of arrays whose last axis is contiguous; strides of the others
extern "C" void sum_of_product_float32(const float* a, const float* b, float* out, int64_t ni, int64_t nj, int64_t nk,
                                       int64_t terms, int64_t ai, int64_t aj, int64_t ak, int64_t at, int64_t bi,
                                       int64_t bj, int64_t bk, int64_t bt, int64_t lanes, int threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (ni * nj * nk * terms * lanes > FEW)
    for (int64_t i = 0; i < ni; ++i)
        for (int64_t j = 0; j < nj; ++j)
            for (int64_t k = 0; k < nk; ++k)
                sum_of_products(a + i * ai + j * aj + k * ak, at, b + i * bi + j * bj + k * bk, bt, terms,
                                out + ((i * nj + j) * nk + k) * lanes, lanes);
}
