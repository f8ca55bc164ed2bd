// What is no matmul in training and predicting, with the batch last in memory; numbers are float32 or bfloat16.
//
// Built without any header of torch, which takes a second. Every array is contiguous, and nothing is checked here.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t TILE = 128;    // rows of a batch at a time: their sums and weights stay in the nearest cache
constexpr int64_t LONG = 2048;   // and where nothing but a row is held
constexpr int64_t FEW = 1 << 14; // multiply-adds that are not worth a second thread

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
    const int64_t tiles = (b + TILE - 1) / TILE;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (t * e * h * b > FEW)
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t unit = 0; unit < h; ++unit) {
            const int64_t first = tile * TILE, many = std::min(TILE, b - first);
            float sum[TILE];
            for (int64_t reader = 0; reader < t; ++reader) {
                sum_of_products(w + reader * e * b + first, b, x + unit * b + first, h * b, e, sum, many);
                T* made = z + (reader * h + unit) * b + first;
                for (int64_t i = 0; i < many; ++i) narrow(sum[i], made[i]);
            }
        }
}

// dx[e, h, b] = sum_t w[t, e, b] dz[t, h, b] and dw[t, e, b] = sum_h dz[t, h, b] x[e, h, b]
template <typename T>
void unmix(const float* w, const T* x, const T* dz, T* dx, float* dw, int64_t t, int64_t e, int64_t h, int64_t b,
           int threads) {
    const int64_t tiles = (b + TILE - 1) / TILE;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (t * e * h * b > FEW)
    for (int64_t tile = 0; tile < tiles; ++tile)
        for (int64_t source = 0; source < e; ++source) {
            const int64_t first = tile * TILE, many = std::min(TILE, b - first);
            float sum[TILE];
            for (int64_t unit = 0; unit < h; ++unit) {
                sum_of_products(w + source * b + first, e * b, dz + unit * b + first, h * b, t, sum, many);
                T* made = dx + (source * h + unit) * b + first;
                for (int64_t i = 0; i < many; ++i) narrow(sum[i], made[i]);
            }
            for (int64_t reader = 0; reader < t; ++reader) {
                const int64_t at = reader * e + source;
                const T *pull = dz + reader * h * b + first, *read = x + source * h * b + first;
                sum_of_products(pull, b, read, b, h, dw + at * b + first, many);
            }
        }
}

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
    extern "C" void mix_##T(const float* w, const T* x, T* z, int64_t t, int64_t e, int64_t h, int64_t b,              \
                            int threads) {                                                                             \
        mix(w, x, z, t, e, h, b, threads);                                                                             \
    }                                                                                                                  \
    extern "C" void unmix_##T(const float* w, const T* x, const T* dz, T* dx, float* dw, int64_t t, int64_t e,         \
                              int64_t h, int64_t b, int threads) {                                                     \
        unmix(w, x, dz, dx, dw, t, e, h, b, threads);                                                                  \
    }                                                                                                                  \
    extern "C" void relu_##T(T* x, int64_t many, int threads) { relu(x, many, threads); }                              \
    extern "C" void relu_of_sum_##T(T* x, const T* bias, int64_t units, int64_t lanes, int threads) {                  \
        relu_of_sum(x, bias, units, lanes, threads);                                                                   \
    }                                                                                                                  \
    extern "C" void mask_##T(T* dx, T* x, int64_t many, int threads) { mask(dx, x, many, threads); }

using float32 = float;
EACH(float32)
EACH(bfloat16)

namespace {

template <int64_t FIXED>
int64_t look_up(const float* table, const int32_t* ids, const int64_t* starts, float* x, int64_t rows, int64_t b,
                int64_t columns, int64_t any, int threads) {
    const int64_t dim = FIXED ? FIXED : any;
    int64_t lost = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : lost) if (b * columns * dim > FEW)
    for (int64_t row = 0; row < b; ++row)
        for (int64_t column = 0; column < columns; ++column) {
            const int64_t place = starts[column] + ids[row * columns + column];
            if (place < 0 || place >= rows)
                ++lost;
            else
                std::copy_n(table + place * dim, dim, x + (row * columns + column) * dim);
        }
    return lost;
}

template <int64_t FIXED>
void add_up(const float* dx, const int32_t* ids, const int64_t* starts, const int64_t* owners, float* sums, int64_t b,
            int64_t columns, int64_t any, int64_t apart, int threads) {
    const int64_t dim = FIXED ? FIXED : any;
#pragma omp parallel for schedule(static) num_threads(threads) if (b * columns * dim > FEW)
    for (int part = 0; part < threads; ++part) {
        std::vector<int64_t> mine;
        for (int64_t column = 0; column < columns; ++column)
            if (owners[column] % threads == part) mine.push_back(column);
        for (int64_t row = 0; row < b; ++row)
            for (const int64_t column : mine) {
                const float* pull = dx + row * apart + column * dim;
                float* sum = sums + (starts[column] + ids[row * columns + column]) * dim;
                for (int64_t i = 0; i < dim; ++i) sum[i] += pull[i];
            }
    }
}

} // namespace

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

// x[b, c, :] = table[starts[c] + ids[b, c], :]; returns how many ids have no row there, whose x is not written
extern "C" int64_t look_up_float32(const float* table, const int32_t* ids, const int64_t* starts, float* x, int64_t rows,
                                   int64_t b, int64_t columns, int64_t dim, int threads) {
    const auto look = dim == 8 ? look_up<8> : dim == 16 ? look_up<16> : look_up<0>;
    return look(table, ids, starts, x, rows, b, columns, dim, threads);
}

// sums[starts[c] + ids[b, c], :] += dx[b, c, :], rows of dx being ``apart``; a table's columns have one of the ``owners``
extern "C" void add_up_float32(const float* dx, const int32_t* ids, const int64_t* starts, const int64_t* owners,
                               float* sums, int64_t b, int64_t columns, int64_t dim, int64_t apart, int threads) {
    const auto add = dim == 8 ? add_up<8> : dim == 16 ? add_up<16> : add_up<0>;
    add(dx, ids, starts, owners, sums, b, columns, dim, apart, threads);
}
