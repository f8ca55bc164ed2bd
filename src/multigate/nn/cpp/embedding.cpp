// Rows of embedding tables: looked up, their gradients added up, and moved by Adam where a batch reads them.

#include "numbers.h"

#include <cmath>
#include <vector>

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
