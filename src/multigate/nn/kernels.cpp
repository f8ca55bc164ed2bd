// What is no matmul in training and predicting, with the batch last in memory; numbers are float32 or bfloat16.
//
// Built without any header of torch, which takes a second. Every array is contiguous, and nothing is checked here.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

constexpr int64_t TILE = 128;    // rows of a batch at a time: their sums and weights stay in the nearest cache
constexpr int64_t STREAM = 1024; // and where more is read than kept, at most: long enough to be fetched ahead
constexpr int64_t LONG = 2048;   // and where nothing but a row is held
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

// Adam on ``many`` rows of a table alone, each of them once: weight, both moments and the count of a row's steps, by the
// gradients g (many, dim); ``how``: rate, what decay leaves of a weight, both betas, epsilon
extern "C" void lazy_adam_float32(const int64_t* rows, const float* g, float* weight, float* first, float* second,
                                  float* steps, const double* how, int64_t many, int64_t dim, int threads) {
    constexpr int64_t AHEAD = 8; // rows whose numbers are asked for before they are needed
    const double rate = how[0], log_one = std::log(how[2]), log_two = std::log(how[3]);
    const float kept = float(how[1]), by_one = float(1 - how[2]), two = float(how[3]), by_two = float(1 - how[3]);
#pragma omp parallel for schedule(static) num_threads(threads) if (many * dim > FEW)
    for (int64_t i = 0; i < many; ++i) {
        if (i + AHEAD < many)
            for (const float* table : {weight, first, second})
                __builtin_prefetch(table + rows[i + AHEAD] * dim, 1);
        const double step = steps[rows[i]] += 1.0f;
        const double of_first = -std::expm1(step * log_one), root = std::sqrt(-std::expm1(step * log_two));
        const float by = float(rate * root / of_first), near = float(how[4] * root);
        const float* __restrict pull = g + i * dim;
        float *__restrict w = weight + rows[i] * dim, *__restrict m = first + rows[i] * dim;
        float* __restrict v = second + rows[i] * dim;
        for (int64_t d = 0; d < dim; ++d) {
            m[d] += by_one * (pull[d] - m[d]);
            v[d] = two * v[d] + by_two * pull[d] * pull[d];
            w[d] = kept * w[d] - by * m[d] / (std::sqrt(v[d]) + near);
        }
    }
}

namespace {

// A linear map of columns that are rows of tables: w e[id] is computed once for each row of a table, ``LANES`` units of
// w at a time, whose products lie in the nearest cache while the rows of the batch add theirs up.
constexpr int AT_ONCE = std::min(LANES, 8); // rows, so that no sum waits for its own
constexpr int64_t MEET = 48;                // pairs of terms that are one term, at most: all lie in the nearest cache
constexpr int64_t SOME = 256;               // rows that are read before pairs are counted
constexpr int64_t TRIES = 8;                // terms that a column is tried with

// Of two vectors, every second run of SIZE numbers of each: those before, or those after
#ifdef __clang__
template <int SIZE, int... I> inline Vector runs_before(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I & SIZE) ? LANES + I - SIZE : I)...);
}
template <int SIZE, int... I> inline Vector runs_after(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I & SIZE) ? LANES + I : I + SIZE)...);
}
#else
typedef int32_t Order __attribute__((vector_size(LANES * sizeof(int32_t))));
template <int SIZE, int... I> inline Vector runs_before(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shuffle(a, b, Order{((I & SIZE) ? LANES + I - SIZE : I)...});
}
template <int SIZE, int... I> inline Vector runs_after(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shuffle(a, b, Order{((I & SIZE) ? LANES + I : I + SIZE)...});
}
#endif

template <int SIZE = LANES / 2> inline void turn(Vector (&x)[LANES]) { // a square of numbers, rows to columns
    constexpr std::make_integer_sequence<int, LANES> each{};
    for (int i = 0; i < LANES; ++i)
        if (!(i & SIZE)) {
            const Vector a = x[i], b = x[i + SIZE];
            x[i] = runs_before<SIZE>(a, b, each);
            x[i + SIZE] = runs_after<SIZE>(a, b, each);
        }
    if constexpr (SIZE > 1) turn<SIZE / 2>(x);
}

// c columns of x that are rows of ``table``: column k is ``dim`` columns of w, a multiple of 8, from places[k] on. What w
// makes of it is one of the terms first[k] to first[k + 1], each of a value, which is row[term] of the table. Terms after
// those are sums of two before them, one[.] and other[.]: values of columns that meet in rows of the batch. A row of the
// batch has m terms, at[.]; its sum is that of all columns.
struct Columns {
    const float* table;
    const int32_t *at, *row, *one, *other; // (b, m), (values,), (sums,), (sums,)
    const int64_t *first, *places;
    int64_t b, m, c, dim, sums;
    int64_t values() const { return first[c]; }
    int64_t terms() const { return first[c] + sums; }
};

// Columns of w, ``columns``, that are multiplied by those of x (b, k) themselves; of k < 0 nothing is known.
struct Dense {
    const float* x;
    const int64_t* columns;
    int64_t k;
};

// Those of the dense columns that hold anything but zeros, side by side: often nothing is missing, or nothing is earned.
struct Alive {
    std::vector<int64_t> columns; // by their places among the dense ones
    std::vector<float> x;         // (b, of those)

    Alive(const Dense& dense, int64_t b) {
        for (int64_t d = 0; d < dense.k; ++d) {
            bool any = false;
            for (int64_t row = 0; row < b && !any; ++row) any = dense.x[row * dense.k + d] != 0.0f;
            if (any) columns.push_back(d);
        }
        x.resize(b * columns.size());
        for (int64_t row = 0, to = 0; row < b; ++row)
            for (const int64_t d : columns) x[to++] = dense.x[row * dense.k + d];
    }
    int64_t k() const { return columns.size(); }
};

// Sums of terms, from what they are sums of
inline void join(const Columns& of, Vector* held) {
    Vector* sum = held + of.values();
    for (int64_t s = 0; s < of.sums; ++s) sum[s] = held[of.one[s]] + held[of.other[s]];
}

// Gradients of what terms are sums of: those of all sums that they are in are added to their own
inline void part(const Columns& of, Vector* held) {
    const Vector* sum = held + of.values();
    for (int64_t s = of.sums - 1; s >= 0; --s) {
        held[of.one[s]] += sum[s];
        held[of.other[s]] += sum[s];
    }
}

// sums[row] = sum_d x[row, d] by[d] + sum_t held[at[row, t]] of ROWS rows
template <int ROWS>
inline void sums_of(const float* x, int64_t k, const Vector* by, const Vector* held, const int32_t* at, int64_t m,
                    Vector* sums) {
    Vector sum[ROWS] = {};
    for (int64_t d = 0; d < k; ++d)
        for (int row = 0; row < ROWS; ++row) sum[row] += x[row * k + d] * by[d];
    for (int64_t t = 0; t < m; ++t)
        for (int row = 0; row < ROWS; ++row) sum[row] += held[at[row * m + t]];
    std::copy_n(sum, ROWS, sums);
}

// held[value] = w[LANES units, columns of k] . table[row of the value] of the values of column k; SIZE columns at a time
template <int64_t SIZE>
void to_values(const Columns& of, int64_t k, const float* w, int64_t width, int64_t many, Vector* held) {
    for (int64_t from = 0; from < of.dim; from += SIZE) {
        const float* by = w + of.places[k] + from;
        Vector turned[SIZE] = {};
        for (int64_t i = 0; i < many; ++i)
            for (int64_t d = 0; d < SIZE; ++d) turned[d][i] = by[i * width + d];
        for (int64_t v = of.first[k]; v < of.first[k + 1]; ++v) {
            const float* row = of.table + of.row[v] * of.dim + from;
            Vector even = from ? held[v] : Vector{}, odd{};
            for (int64_t d = 0; d < SIZE; d += 2) {
                even += row[d] * turned[d];
                odd += row[d + 1] * turned[d + 1];
            }
            held[v] = even + odd;
        }
    }
}

// z[unit, row] = sum_k w[unit, columns of k] . table[row of k] + w[unit, dense] . x[row, :] + bias[unit], and max(., 0)
// of that where unit < active; added to z if nothing is known of dense columns
void add_looked_up(const Columns& of, const Dense& dense, const float* w, const float* bias, float* z, int64_t units,
                   int64_t width, int64_t active, int threads) {
    const int64_t blocks = (units + LANES - 1) / LANES, b = of.b, m = of.m;
    const Alive alive(dense, b);
    const int64_t alive_k = alive.k();
    const auto to_column = of.dim % 16 ? to_values<8> : to_values<16>;
#pragma omp parallel num_threads(threads) if (units * b * m > FEW)
    {
        std::vector<Vector> held(of.terms()), by(alive_k);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t unit = block * LANES, many = std::min<int64_t>(LANES, units - unit);
            for (int64_t k = 0; k < of.c; ++k) to_column(of, k, w + unit * width, width, many, held.data());
            join(of, held.data());
            for (int64_t d = 0; d < alive_k; ++d)
                for (int64_t i = 0; i < many; ++i)
                    by[d][i] = w[(unit + i) * width + dense.columns[alive.columns[d]]];
            for (int64_t start = 0; start < b; start += TILE) {
                const int64_t rows = std::min(TILE, b - start);
                Vector tile[TILE];
                for (int64_t r = 0; r < rows; r += LANES) {
                    Vector sums[LANES] = {};
                    const int64_t few = std::min<int64_t>(LANES, rows - r);
                    for (int64_t j = 0, done; j < few; j += done) {
                        done = j + AT_ONCE <= few ? AT_ONCE : 1;
                        const auto add_up = done == 1 ? sums_of<1> : sums_of<AT_ONCE>;
                        const int64_t row = start + r + j;
                        const float* x = alive.x.data() + row * alive_k;
                        add_up(x, alive_k, by.data(), held.data(), of.at + row * m, m, sums + j);
                    }
                    turn(sums);
                    for (int64_t i = 0; i < LANES; ++i) tile[i * (TILE / LANES) + r / LANES] = sums[i];
                }
                const float* made = reinterpret_cast<const float*>(tile);
                for (int64_t i = 0; i < many; ++i) {
                    float* out = z + (unit + i) * b + start;
                    const float *sum = made + i * TILE, more = bias ? bias[unit + i] : 0.0f;
                    const float least = unit + i < active ? 0.0f : -INFINITY;
                    for (int64_t j = 0; j < rows; ++j) {
                        const float whole = (dense.k < 0 ? out[j] : 0.0f) + sum[j] + more;
                        out[j] = least > whole ? least : whole; // what is no number stays none
                    }
                }
            }
        }
    }
}

// Of the gradients of the values of column k: sums[d], those of w's columns, and what is added to ``grown``, of its rows;
// SIZE columns of w at a time
template <int64_t SIZE>
void of_values(const Columns& of, int64_t k, const float* w, int64_t width, int64_t many, const Vector* held,
               Vector* sums, float* grown) {
    typedef float Row __attribute__((vector_size(SIZE * sizeof(float))));
    for (int64_t from = 0; from < of.dim; from += SIZE) {
        const float* by = w + of.places[k] + from;
        Vector sum[SIZE] = {};
        Row weights[LANES] = {};
        for (int64_t i = 0; i < many; ++i) std::memcpy(&weights[i], by + i * width, sizeof(Row));
        for (int64_t v = of.first[k]; v < of.first[k + 1]; ++v) {
            const float* row = of.table + of.row[v] * of.dim + from;
            const Vector pull = held[v];
            for (int64_t d = 0; d < SIZE; ++d) sum[d] += row[d] * pull;
            float* to = grown + v * of.dim + from;
            Row even, odd{};
            std::memcpy(&even, to, sizeof even);
            for (int i = 0; i < LANES; i += 2) {
                even += pull[i] * weights[i];
                odd += pull[i + 1] * weights[i + 1];
            }
            even += odd;
            std::memcpy(to, &even, sizeof even);
        }
        std::copy_n(sum, SIZE, sums + from);
    }
}

// The rows of a batch by the terms that they have: those of a group's term are row[first] to row[end]. Of each of the m
// that a row has, the term of most rows is left out: its sum over rows is what the sums of the others leave.
struct Grouped {
    struct Group {
        int64_t term, first, end;
    };
    std::vector<int32_t> row;
    std::vector<Group> groups;
    std::vector<int64_t> begin, frequent; // (m + 1,) groups of each, (m,) the term left out

    explicit Grouped(const Columns& of) : row(of.b * of.m), begin{0} {
        std::vector<int64_t> next(of.terms());
        int64_t end = 0;
        for (int64_t t = 0; t < of.m; ++t) {
            std::vector<int64_t> terms; // of this place, as they come
            for (int64_t i = 0; i < of.b; ++i) {
                const int64_t term = of.at[i * of.m + t];
                if (!next[term]++) terms.push_back(term);
            }
            int64_t most = terms[0]; // there is a row, or there would be no place
            for (const int64_t term : terms)
                if (next[term] > next[most]) most = term;
            frequent.push_back(most);
            for (const int64_t term : terms) {
                const int64_t many = next[term];
                next[term] = end;
                if (term != most) groups.push_back({term, end, end + many}), end += many;
            }
            for (int64_t i = 0; i < of.b; ++i) {
                const int64_t term = of.at[i * of.m + t];
                if (term != most) row[next[term]++] = int32_t(i);
            }
            begin.push_back(groups.size());
        }
    }
};

// sum of pull[row[.]] from first to end
inline Vector sum_of_rows(const Vector* pull, const int32_t* row, int64_t first, int64_t end) {
    Vector sum[4] = {};
    int64_t i = first;
    for (; i + 4 <= end; i += 4)
        for (int j = 0; j < 4; ++j) sum[j] += pull[row[i + j]];
    for (; i < end; ++i) sum[0] += pull[row[i]];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Gradients of ``add_looked_up``: of w, in the columns that it knows of, and of the bias, written; of the table's rows,
// added to ``dtable``
void of_looked_up(const Columns& of, const Dense& dense, const float* dz, const float* w, float* dw, float* dbias,
                  float* dtable, int64_t units, int64_t width, int threads) {
    const int64_t dim = of.dim, blocks = (units + LANES - 1) / LANES, b = of.b;
    const auto of_column = dim % 16 ? of_values<8> : of_values<16>;
    const int64_t values = of.values();
    const Alive alive(dense, b);
    const int64_t alive_k = alive.k();
    const Grouped grouped(of);
    std::vector<float> grown(threads * values * dim);
#pragma omp parallel for schedule(static) num_threads(threads) if (units * b * of.m > FEW)
    for (int share = 0; share < threads; ++share) {
        std::vector<Vector> held(of.terms()), sums(dim), by(alive_k), pull(b);
        for (int64_t block = blocks * share / threads; block < blocks * (share + 1) / threads; ++block) {
            const int64_t unit = block * LANES, many = std::min<int64_t>(LANES, units - unit);
            std::fill(held.begin(), held.end(), Vector{});
            std::fill(by.begin(), by.end(), Vector{});
            Vector whole{};
            for (int64_t start = 0; start < b; start += TILE) {
                const int64_t rows = std::min(TILE, b - start);
                Vector tile[TILE];
                float* read = reinterpret_cast<float*>(tile);
                for (int64_t i = 0; i < LANES; ++i) {
                    const int64_t found = i < many ? rows : 0;
                    if (found) std::copy_n(dz + (unit + i) * b + start, found, read + i * TILE);
                    std::fill(read + i * TILE + found, read + (i + 1) * TILE, 0.0f);
                }
                for (int64_t r = 0; r < rows; r += LANES) {
                    Vector square[LANES];
                    for (int64_t i = 0; i < LANES; ++i) square[i] = tile[i * (TILE / LANES) + r / LANES];
                    turn(square);
                    const int64_t few = std::min<int64_t>(LANES, rows - r);
                    std::copy_n(square, few, pull.data() + start + r);
                    for (int64_t j = 0; j < few; ++j) whole += square[j];
                    for (int64_t d = 0; d < alive_k; ++d) {
                        Vector sum = by[d];
                        for (int64_t j = 0; j < few; ++j) sum += alive.x[(start + r + j) * alive_k + d] * square[j];
                        by[d] = sum;
                    }
                }
            }
            for (int64_t t = 0; t < of.m; ++t) {
                Vector rest = whole;
                for (int64_t g = grouped.begin[t]; g < grouped.begin[t + 1]; ++g) {
                    const auto& [term, first, end] = grouped.groups[g];
                    rest -= held[term] = sum_of_rows(pull.data(), grouped.row.data(), first, end);
                }
                held[grouped.frequent[t]] = rest;
            }
            for (int64_t i = 0; i < many; ++i) {
                for (int64_t d = 0; d < dense.k; ++d) dw[(unit + i) * width + dense.columns[d]] = 0.0f;
                for (int64_t d = 0; d < alive_k; ++d)
                    dw[(unit + i) * width + dense.columns[alive.columns[d]]] = by[d][i];
                if (dbias) dbias[unit + i] = whole[i];
            }
            part(of, held.data());
            for (int64_t k = 0; k < of.c; ++k) {
                float* mine = grown.data() + share * values * dim;
                of_column(of, k, w + unit * width, width, many, held.data(), sums.data(), mine);
                for (int64_t i = 0; i < many; ++i)
                    for (int64_t d = 0; d < dim; ++d) dw[(unit + i) * width + of.places[k] + d] = sums[d][i];
            }
        }
    }
    for (int share = 0; share < threads; ++share)
        for (int64_t v = 0; v < values; ++v) {
            const float* from = grown.data() + (share * values + v) * dim;
            float* sum = dtable + of.row[v] * dim;
            for (int64_t d = 0; d < dim; ++d) sum[d] += from[d];
        }
}

// One of the terms that each row has: which one of ``many`` from ``first`` on.
struct Term {
    int64_t first, many;
    std::vector<uint16_t> at; // (b,) from 0: what is looked up has fewer values than such a number
};

// The values of column k in ids (b, width), of ``size`` rows of the table from ``start`` on: those rows, as they come, and
// which one each row of the batch has; returns how many ids are none
int64_t number_values(const int32_t* ids, int64_t width, int64_t start, int64_t size, Term& column, int32_t* row) {
    std::vector<int32_t> number(size, -1);
    const int64_t b = column.at.size();
    int64_t lost = 0, many = 0;
    for (int64_t i = 0; i < b; ++i) {
        const int64_t id = ids[i * width];
        if (id < 0 || id >= size) {
            ++lost;
            continue;
        }
        if (number[id] < 0) {
            row[many] = int32_t(start + id);
            number[id] = int32_t(many++);
        }
        column.at[i] = uint16_t(number[id]);
    }
    column.many = many;
    return lost;
}

// Which pairs of terms rows have: true, and the pairs in ``made``, if they are not more than MEET
bool meet(const Term& one, const Term& other, Term& made, int32_t* ones, int32_t* others) {
    if (std::max(one.many, other.many) > MEET) return false;
    const int64_t b = made.at.size(), many_others = other.many, pairs = one.many * many_others;
    const uint16_t *ones_at = one.at.data(), *others_at = other.at.data(); // bytes that are written may be anything's
    alignas(uint64_t) std::array<uint8_t, MEET * MEET> seen{};
    for (int64_t start = 0; start < b; start += SOME) {
        const int64_t end = std::min(start + SOME, b);
        std::array<uint16_t, SOME> key;
        for (int64_t i = start; i < end; ++i) key[i - start] = uint16_t(ones_at[i] * uint16_t(many_others) + others_at[i]);
        for (int64_t i = 0; i < end - start; ++i) seen[key[i]] = 1;
        int64_t many = 0;
        for (int64_t pair = 0; pair < pairs; pair += sizeof(uint64_t)) {
            uint64_t word;
            std::memcpy(&word, &seen[pair], sizeof word);
            many += __builtin_popcountll(word);
        }
        if (many > MEET) return false;
    }
    constexpr uint8_t NONE = 255;
    std::fill_n(seen.begin(), pairs, NONE);
    uint16_t* at = made.at.data();
    int32_t many = 0;
    for (int64_t i = 0; i < b; ++i) { // as they come: sums of one term that follow one another wait for one another
        uint8_t& found = seen[ones_at[i] * many_others + others_at[i]];
        if (found == NONE) {
            ones[many] = int32_t(one.first + ones_at[i]), others[many] = int32_t(other.first + others_at[i]);
            found = uint8_t(many++);
        }
        at[i] = found;
    }
    made.many = many;
    return true;
}

// Terms, as in ``Columns``, of ids (b, width) of which column k is read[k], its values being ``sizes[k]`` rows of the table
// from starts[k] on. Columns of many values come first, and each is added to the first of the last TRIES terms that it
// meets in few pairs. ``made`` is m and how many sums there are; returns how many ids are none.
int64_t number_terms(const int32_t* ids, const int64_t* read, const int64_t* starts, const int64_t* sizes, int32_t* at,
                     int32_t* row, int64_t* first, int32_t* one, int32_t* other, int64_t* made, int64_t b, int64_t width,
                     int64_t c, int threads) {
    std::vector<Term> columns(c);
    first[0] = 0;
    for (int64_t k = 0; k < c; ++k) first[k + 1] = first[k] + sizes[k];
    int64_t lost = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : lost) if (b * c > FEW)
    for (int64_t k = 0; k < c; ++k) {
        columns[k].at.resize(b);
        lost += number_values(ids + read[k], width, starts[k], sizes[k], columns[k], row + first[k]);
    }
    if (lost) return lost;
    int64_t end = 0, sums = 0;
    for (int64_t k = 0; k < c; ++k) {
        std::copy_n(row + first[k], columns[k].many, row + end);
        first[k] = columns[k].first = end;
        end += columns[k].many;
    }
    first[c] = end;
    std::stable_sort(columns.begin(), columns.end(), [](const Term& a, const Term& b) { return a.many > b.many; });
    std::vector<Term> terms;
    Term sum{0, 0, std::vector<uint16_t>(b)};
    for (Term& column : columns) {
        int64_t t = std::max<int64_t>(0, int64_t(terms.size()) - TRIES);
        while (t < int64_t(terms.size()) && !meet(terms[t], column, sum, one + sums, other + sums)) ++t;
        if (t == int64_t(terms.size())) {
            terms.push_back(std::move(column));
            continue;
        }
        sum.first = end + sums;
        sums += sum.many;
        std::swap(terms[t], sum);
    }
    const int64_t m = made[0] = b ? terms.size() : 0;
    made[1] = sums;
    for (int64_t t = 0; t < m; ++t)
        for (int64_t i = 0; i < b; ++i) at[i * m + t] = int32_t(terms[t].first) + terms[t].at[i];
    return 0;
}

} // namespace

extern "C" const int64_t most_pairs = MEET;

extern "C" int64_t number_terms_float32(const int32_t* ids, const int64_t* read, const int64_t* starts,
                                        const int64_t* sizes, int32_t* at, int32_t* row, int64_t* first, int32_t* one,
                                        int32_t* other, int64_t* made, int64_t b, int64_t width, int64_t c, int threads) {
    return number_terms(ids, read, starts, sizes, at, row, first, one, other, made, b, width, c, threads);
}

extern "C" void add_looked_up_float32(const float* table, const int32_t* at, const int32_t* row, const int64_t* first,
                                      const int32_t* one, const int32_t* other, const int64_t* places, const float* x,
                                      const int64_t* columns, const float* w, const float* bias, float* z, int64_t b,
                                      int64_t m, int64_t c, int64_t dim, int64_t sums, int64_t dense, int64_t units,
                                      int64_t width, int64_t active, int threads) {
    const Columns of{table, at, row, one, other, first, places, b, m, c, dim, sums};
    add_looked_up(of, {x, columns, dense}, w, bias, z, units, width, active, threads);
}

extern "C" void of_looked_up_float32(const float* table, const int32_t* at, const int32_t* row, const int64_t* first,
                                     const int32_t* one, const int32_t* other, const int64_t* places, const float* x,
                                     const int64_t* columns, const float* w, const float* dz, float* dw, float* dbias,
                                     float* dtable, int64_t b, int64_t m, int64_t c, int64_t dim, int64_t sums,
                                     int64_t dense, int64_t units, int64_t width, int threads) {
    const Columns of{table, at, row, one, other, first, places, b, m, c, dim, sums};
    of_looked_up(of, {x, columns, dense}, dz, w, dw, dbias, dtable, units, width, threads);
}

namespace {

typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
constexpr int64_t VECTORS = TILE / LANES; // of a tile

// Of two vectors, the numbers of the first where all bits of ``where`` are ones, of the second where they are zeros
inline Vector chosen(Words where, Vector one, Vector other) {
    return (Vector)((where & (Words)one) | (~where & (Words)other));
}

// e^x to 2e-7 of it, of x from -87 to 88: 2^n times the series of what is left; what is no number stays none
inline Vector exponential(Vector x) {
    const Vector least = Vector{} - 87.0f, most = Vector{} + 88.0f;
    x = chosen((Words)(x > most), most, x);
    x = chosen((Words)(x < least), least, x);
    constexpr float WHOLE = 12582912.0f; // 1.5 * 2^23: a number added to it is rounded to a whole one, its lowest bits
    const Vector shifted = x * 1.44269504f + WHOLE, n = shifted - WHOLE;
    const Vector left = (x - n * 0.693145752f) - n * 1.42860677e-6f; // n times log 2, in two parts
    Vector series = left * (1.0f / 5040) + 1.0f / 720;
    series = series * left + 1.0f / 120;
    series = series * left + 1.0f / 24;
    series = series * left + 1.0f / 6;
    series = series * left + 0.5f;
    series = series * left + 1.0f;
    series = series * left + 1.0f;
    return series * (Vector)(((Words)shifted + 127u) << 23);
}

// Rows of a tile x[0] to x[terms - 1], and one more row, by weights that lie ``next`` apart: row += sum_t w[t] x[t],
// x[t] += w[t] row, and w[t] += x[t] row, summed over the tile
template <int64_t TERMS> inline std::array<float, TERMS> taken(const float* w, int64_t next) {
    std::array<float, TERMS> by;
    for (int64_t t = 0; t < TERMS; ++t) by[t] = w[t * next];
    return by;
}

struct Gather {
    template <int64_t TERMS> static void of(const float* w, int64_t next, const Vector* x, Vector* row) {
        const std::array<float, TERMS> by = taken<TERMS>(w, next);
        for (int64_t i = 0; i < VECTORS; ++i) {
            Vector sum = row[i];
            for (int64_t t = 0; t < TERMS; ++t) sum += by[t] * x[t * VECTORS + i];
            row[i] = sum;
        }
    }
};
struct Scatter {
    template <int64_t TERMS> static void of(const float* w, int64_t next, Vector* x, const Vector* row) {
        const std::array<float, TERMS> by = taken<TERMS>(w, next);
        for (int64_t i = 0; i < VECTORS; ++i) {
            const Vector one = row[i];
            for (int64_t t = 0; t < TERMS; ++t) x[t * VECTORS + i] += by[t] * one;
        }
    }
};
struct Multiply {
    template <int64_t TERMS> static void of(float* w, int64_t next, const Vector* x, const Vector* row) {
        Vector sum[TERMS] = {};
        for (int64_t i = 0; i < VECTORS; ++i)
            for (int64_t t = 0; t < TERMS; ++t) sum[t] += x[t * VECTORS + i] * row[i];
        for (int64_t t = 0; t < TERMS; ++t)
            for (int lane = 0; lane < LANES; ++lane) w[t * next] += sum[t][lane];
    }
};

// Eight terms at a time, whose sums and weights stay in registers
template <typename Does, typename W, typename X, typename Row>
inline void each(W* w, int64_t next, X* x, Row* row, int64_t terms) {
    int64_t t = 0;
    for (; t + 8 <= terms; t += 8) Does::template of<8>(w + t * next, next, x + t * VECTORS, row);
    for (; t < terms; ++t) Does::template of<1>(w + t * next, next, x + t * VECTORS, row);
}

// Gates of n readers of d features, by weights of rank r: down (n, r, d) and up (n, d, r). Reader i reads unit read[i] of
// x (u, d, b).
struct Gates {
    const float *down, *up;
    const int64_t* read;
    int64_t n, r, d, u, b;
    int64_t tiles() const { return (b + TILE - 1) / TILE; }
    int64_t weights() const { return n * r * d; }
};

// What a tile of rows has of one unit, and of one reader of it
struct Gated {
    const Gates& of;
    std::vector<Vector> x, low, gate; // (d,), (r,) and one row of a tile

    explicit Gated(const Gates& of) : of(of), x(of.d * VECTORS), low(of.r * VECTORS), gate(VECTORS) {}

    static float* numbers(Vector* row) { return reinterpret_cast<float*>(row); }
    Vector* features(int64_t d) { return x.data() + d * VECTORS; }

    template <typename T> void take(const T* from, int64_t many) { // rows after those are zeros
        for (int64_t d = 0; d < of.d; ++d) {
            float* to = numbers(features(d));
            for (int64_t i = 0; i < many; ++i) to[i] = wide(from[d * of.b + i]);
            std::fill(to + many, to + TILE, 0.0f);
        }
    }

    void lower(int64_t reader) { // low = down x
        const float* down = of.down + reader * of.r * of.d;
        std::fill(low.begin(), low.end(), Vector{});
        for (int64_t d = 0; d < of.d; ++d) each<Scatter>(down + d, of.d, low.data(), features(d), of.r);
    }

    void open(int64_t reader, int64_t d) { // gate = 1 / (1 + e^-(up low)), of one feature
        std::fill(gate.begin(), gate.end(), Vector{});
        each<Gather>(of.up + (reader * of.d + d) * of.r, 1, low.data(), gate.data(), of.r);
        for (Vector& one : gate) one = 1.0f / (1.0f + exponential(-one));
    }
};

// z[i, d, b] = 2 x[read[i], d, b] gate[i, d, b]
template <typename T> void gate_features(const Gates& of, const T* x, T* z, int threads) {
    const int64_t tiles = of.tiles(), shares = std::min<int64_t>(threads, tiles);
#pragma omp parallel for schedule(static) num_threads(threads) if (of.weights() * of.b > FEW)
    for (int64_t share = 0; share < shares; ++share) {
        Gated gated(of);
        for (int64_t task = share; task < tiles * of.u; task += shares) {
            const int64_t unit = task / tiles, first = task % tiles * TILE, many = std::min(TILE, of.b - first);
            gated.take(x + unit * of.d * of.b + first, many);
            for (int64_t reader = 0; reader < of.n; ++reader) {
                if (of.read[reader] != unit) continue;
                gated.lower(reader);
                for (int64_t d = 0; d < of.d; ++d) {
                    gated.open(reader, d);
                    const float *read = gated.numbers(gated.features(d)), *gate = gated.numbers(gated.gate.data());
                    T* made = z + (reader * of.d + d) * of.b + first;
                    for (int64_t i = 0; i < many; ++i) narrow(2.0f * read[i] * gate[i], made[i]);
                }
            }
        }
    }
}

// Gradients of ``gate_features``: of x, written, and of the weights, added to what is there
template <typename T>
void ungate_features(const Gates& of, const T* x, const T* dz, T* dx, float* ddown, float* dup, int threads) {
    const int64_t tiles = of.tiles(), weights = of.weights(), shares = std::min<int64_t>(threads, tiles);
    std::vector<float> grown(shares * 2 * weights);
#pragma omp parallel for schedule(static) num_threads(threads) if (weights * of.b > FEW)
    for (int64_t share = 0; share < shares; ++share) {
        Gated gated(of);
        std::vector<Vector> of_x(of.d * VECTORS), of_low(of.r * VECTORS), of_logit(VECTORS);
        float *of_down = grown.data() + share * 2 * weights, *of_up = of_down + weights;
        for (int64_t task = share; task < tiles * of.u; task += shares) {
            const int64_t unit = task / tiles, first = task % tiles * TILE, many = std::min(TILE, of.b - first);
            gated.take(x + unit * of.d * of.b + first, many);
            std::fill(of_x.begin(), of_x.end(), Vector{});
            for (int64_t reader = 0; reader < of.n; ++reader) {
                if (of.read[reader] != unit) continue;
                gated.lower(reader);
                std::fill(of_low.begin(), of_low.end(), Vector{});
                for (int64_t d = 0; d < of.d; ++d) {
                    gated.open(reader, d);
                    const int64_t place = reader * of.d + d;
                    const T* pull = dz + place * of.b + first; // of so few rows that nothing fetches the next feature's
                    for (int64_t i = 0; i < many; i += 64 / sizeof(T)) __builtin_prefetch(pull + of.b + i);
                    const float *read = gated.numbers(gated.features(d)), *gate = gated.numbers(gated.gate.data());
                    float *back = gated.numbers(&of_x[d * VECTORS]), *logit = gated.numbers(of_logit.data());
                    for (int64_t i = 0; i < many; ++i) {
                        const float by = 2.0f * wide(pull[i]) * gate[i];
                        back[i] += by;
                        logit[i] = by * read[i] * (1.0f - gate[i]);
                    }
                    std::fill(logit + many, logit + TILE, 0.0f);
                    each<Multiply>(of_up + place * of.r, 1, gated.low.data(), of_logit.data(), of.r);
                    each<Scatter>(of.up + place * of.r, 1, of_low.data(), of_logit.data(), of.r);
                }
                for (int64_t d = 0; d < of.d; ++d) {
                    const int64_t place = reader * of.r * of.d + d;
                    each<Multiply>(of_down + place, of.d, of_low.data(), gated.features(d), of.r);
                    each<Gather>(of.down + place, of.d, of_low.data(), &of_x[d * VECTORS], of.r);
                }
            }
            for (int64_t d = 0; d < of.d; ++d) {
                T* made = dx + (unit * of.d + d) * of.b + first;
                const float* back = gated.numbers(&of_x[d * VECTORS]);
                for (int64_t i = 0; i < many; ++i) narrow(back[i], made[i]);
            }
        }
    }
    for (int64_t share = 0; share < shares; ++share) {
        const float* of_down = grown.data() + share * 2 * weights;
        for (int64_t w = 0; w < weights; ++w) ddown[w] += of_down[w];
        for (int64_t w = 0; w < weights; ++w) dup[w] += of_down[weights + w];
    }
}

} // namespace

#define EACH_GATED(T)                                                                                                  \
    extern "C" void gate_features_##T(const float* down, const float* up, const int64_t* read, const T* x, T* z,       \
                                      int64_t n, int64_t r, int64_t d, int64_t u, int64_t b, int threads) {            \
        gate_features({down, up, read, n, r, d, u, b}, x, z, threads);                                                 \
    }                                                                                                                  \
    extern "C" void ungate_features_##T(const float* down, const float* up, const int64_t* read, const T* x,           \
                                        const T* dz, T* dx, float* ddown, float* dup, int64_t n, int64_t r, int64_t d, \
                                        int64_t u, int64_t b, int threads) {                                           \
        ungate_features({down, up, read, n, r, d, u, b}, x, dz, dx, ddown, dup, threads);                              \
    }

EACH_GATED(float32)
EACH_GATED(bfloat16)
