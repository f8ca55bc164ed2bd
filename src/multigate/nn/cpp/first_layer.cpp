// A linear map of columns that are rows of tables: w e[id] is computed once for each row of a table, ``LANES`` units of
// w at a time, whose products lie in the nearest cache while the rows of the batch add theirs up.

#include "numbers.h"

#include <cmath>
#include <utility>
#include <vector>

namespace {

constexpr int AT_ONCE = std::min(LANES, 8); // rows, so that no sum waits for its own

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

// c columns of x that are rows of ``table``: column k is ``dim`` columns of w, an even number, from places[k] on. What w
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

// Of a function for 16 columns at a time, and others for fewer: the first whose columns a table of that width is made of
template <typename Does> inline Does at_once(int64_t dim, Does sixteen, Does eight, Does four, Does two) {
    return dim % 2 == 0 ? dim % 4 == 0 ? dim % 8 == 0 ? dim % 16 == 0 ? sixteen : eight : four : two : nullptr;
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
template <typename T>
void add_looked_up(const Columns& of, const Dense& dense, const float* w, const float* bias, T* z, int64_t units,
                   int64_t width, int64_t active, int threads) {
    const int64_t blocks = (units + LANES - 1) / LANES, b = of.b, m = of.m;
    const Alive alive(dense, b);
    const int64_t alive_k = alive.k();
    const auto to_column = at_once(of.dim, to_values<16>, to_values<8>, to_values<4>, to_values<2>);
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
                    T* out = z + (unit + i) * b + start;
                    const float *sum = made + i * TILE, more = bias ? bias[unit + i] : 0.0f;
                    const float least = unit + i < active ? 0.0f : -INFINITY;
                    for (int64_t j = 0; j < rows; ++j) {
                        const float whole = (dense.k < 0 ? wide(out[j]) : 0.0f) + sum[j] + more;
                        narrow(least > whole ? least : whole, out[j]); // what is no number stays none
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
template <typename T>
void of_looked_up(const Columns& of, const Dense& dense, const T* dz, const float* w, float* dw, float* dbias,
                  float* dtable, int64_t units, int64_t width, int threads) {
    const int64_t dim = of.dim, blocks = (units + LANES - 1) / LANES, b = of.b;
    const auto of_column = at_once(dim, of_values<16>, of_values<8>, of_values<4>, of_values<2>);
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
                    for (int64_t j = 0; j < found; ++j) read[i * TILE + j] = wide(dz[(unit + i) * b + start + j]);
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

} // namespace

#define EACH(T)                                                                                                        \
    extern "C" void add_looked_up_##T(                                                                                 \
        const float* table, const int32_t* at, const int32_t* row, const int64_t* first, const int32_t* one,           \
        const int32_t* other, const int64_t* places, const float* x, const int64_t* columns, const float* w,           \
        const float* bias, T* z, int64_t b, int64_t m, int64_t c, int64_t dim, int64_t sums, int64_t dense,            \
        int64_t units, int64_t width, int64_t active, int threads) {                                                   \
        const Columns of{table, at, row, one, other, first, places, b, m, c, dim, sums};                               \
        add_looked_up(of, {x, columns, dense}, w, bias, z, units, width, active, threads);                             \
    }                                                                                                                  \
    extern "C" void of_looked_up_##T(                                                                                  \
        const float* table, const int32_t* at, const int32_t* row, const int64_t* first, const int32_t* one,           \
        const int32_t* other, const int64_t* places, const float* x, const int64_t* columns, const float* w,           \
        const T* dz, float* dw, float* dbias, float* dtable, int64_t b, int64_t m, int64_t c, int64_t dim,             \
        int64_t sums, int64_t dense, int64_t units, int64_t width, int threads) {                                      \
        const Columns of{table, at, row, one, other, first, places, b, m, c, dim, sums};                               \
        of_looked_up(of, {x, columns, dense}, dz, w, dw, dbias, dtable, units, width, threads);                        \
    }

EACH(float32)
EACH(bfloat16)
