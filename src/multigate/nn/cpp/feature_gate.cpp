// Gates of features: each reader's own, of a low rank, opened and applied without being written to memory.

#include "vectors.h"

#include <array>
#include <vector>

namespace {

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

#define EACH(T)                                                                                                        \
    extern "C" void gate_features_##T(const float* down, const float* up, const int64_t* read, const T* x, T* z,       \
                                      int64_t n, int64_t r, int64_t d, int64_t u, int64_t b, int threads) {            \
        gate_features({down, up, read, n, r, d, u, b}, x, z, threads);                                                 \
    }                                                                                                                  \
    extern "C" void ungate_features_##T(const float* down, const float* up, const int64_t* read, const T* x,           \
                                        const T* dz, T* dx, float* ddown, float* dup, int64_t n, int64_t r, int64_t d, \
                                        int64_t u, int64_t b, int threads) {                                           \
        ungate_features({down, up, read, n, r, d, u, b}, x, dz, dx, ddown, dup, threads);                              \
    }

EACH(float32)
EACH(bfloat16)
