// Gates of features: each reader's own, of a low rank, opened and applied without being written to memory.

#include "vectors.h"

#include <array>
#include <vector>

namespace {

constexpr int64_t PIECE = LANES == 16 ? 2 : 1; // vectors of a tile, of which sums for eight terms stay in registers

template <int64_t TERMS> inline std::array<float, TERMS> taken(const float* w, int64_t next) {
    std::array<float, TERMS> by;
    for (int64_t t = 0; t < TERMS; ++t) by[t] = w[t * next];
    return by;
}

// Of tiles of rows x[0] to x[terms - 1], by weights that lie ``next`` apart: row += sum_t w[t] x[t], and
// w[t] += x[t] row, summed over the tile
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
struct Multiply {
    template <int64_t TERMS> static void of(float* w, int64_t next, const Vector* x, const Vector* row) {
        Vector sum[TERMS] = {};
        for (int64_t i = 0; i < VECTORS; ++i)
            for (int64_t t = 0; t < TERMS; ++t) sum[t] += x[t * VECTORS + i] * row[i];
        for (int64_t t = 0; t < TERMS; ++t) w[t * next] += total<LANES>(reinterpret_cast<const float*>(&sum[t]));
    }
};

// Eight terms at a time, whose sums and weights stay in registers
template <typename Does, typename W, typename Row>
inline void each(W* w, int64_t next, const Vector* x, Row* row, int64_t terms) {
    int64_t t = 0;
    for (; t + 8 <= terms; t += 8) Does::template of<8>(w + t * next, next, x + t * VECTORS, row);
    for (; t < terms; ++t) Does::template of<1>(w + t * next, next, x + t * VECTORS, row);
}

// Tiles of rows low[t] = sum_d w[t * next_low + d * next] x[d], of so many features d
template <int64_t TERMS>
inline void lower(const float* w, int64_t next_low, int64_t next, const Vector* x, int64_t features, Vector* low) {
    for (int64_t i = 0; i < VECTORS; i += PIECE) {
        Vector sum[TERMS][PIECE] = {};
        for (int64_t d = 0; d < features; ++d)
            for (int64_t t = 0; t < TERMS; ++t)
                for (int64_t k = 0; k < PIECE; ++k) sum[t][k] += w[t * next_low + d * next] * x[d * VECTORS + i + k];
        for (int64_t t = 0; t < TERMS; ++t) std::copy_n(sum[t], PIECE, low + t * VECTORS + i);
    }
}
inline void lower(const float* w, int64_t next_low, int64_t next, const Vector* x, int64_t features, Vector* low,
                  int64_t terms) {
    int64_t t = 0;
    for (; t + 8 <= terms; t += 8) lower<8>(w + t * next_low, next_low, next, x, features, low + t * VECTORS);
    for (; t < terms; ++t) lower<1>(w + t * next_low, next_low, next, x, features, low + t * VECTORS);
}

// Gates of n readers of d features, by weights of rank r: down (n, r, d) and up (n, d, r). Reader i reads unit read[i] of
// x (u, d, b); low (b / TILE, n, r, TILE) is down x, tile after tile.
struct Gates {
    const float *down, *up;
    const int64_t* read;
    Vector* low;
    int64_t n, r, d, u, b;

    int64_t tiles() const { return (b + TILE - 1) / TILE; }
    int64_t weights() const { return n * r * d; }
    bool few() const { return weights() * b <= FEW; }
    Vector* lowered(int64_t tile, int64_t reader) const { return low + (tile * n + reader) * r * VECTORS; }

    // e^-(up low) + 1 of a feature of a reader, of which 1 / that is the gate
    void open(int64_t reader, int64_t feature, int64_t tile, Vector* to) const {
        std::fill(to, to + VECTORS, Vector{});
        each<Gather>(up + (reader * d + feature) * r, 1, lowered(tile, reader), to, r);
        for (int64_t i = 0; i < VECTORS; ++i) to[i] = 1.0f + exponential(-to[i]);
    }

    template <typename T> void take_unit(const T* x, int64_t unit, int64_t tile, Vector* to) const {
        const int64_t first = tile * TILE, many = std::min(TILE, b - first);
        for (int64_t f = 0; f < d; ++f) take(x + (unit * d + f) * b + first, many, to + f * VECTORS);
    }
};

// z[i, d, b] = 2 x[read[i], d, b] gate[i, d, b], and what is low
template <typename T> void gate_features(const Gates& of, const T* x, T* z, int threads) {
    const int64_t tiles = of.tiles(), many_at_once = STREAM / TILE;
#pragma omp parallel num_threads(threads) if (!of.few())
    {
        std::vector<Vector> read(of.d * VECTORS);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tiles * of.u; ++task) {
            const int64_t unit = task / tiles, tile = task % tiles;
            of.take_unit(x, unit, tile, read.data());
            for (int64_t reader = 0; reader < of.n; ++reader)
                if (of.read[reader] == unit)
                    lower(of.down + reader * of.r * of.d, of.d, 1, read.data(), of.d, of.lowered(tile, reader), of.r);
        }
#pragma omp for collapse(2) schedule(static)
        for (int64_t begin = 0; begin < tiles; begin += many_at_once)
            for (int64_t place = 0; place < of.n * of.d; ++place) {
                const int64_t reader = place / of.d, feature = place % of.d;
                const T* from = x + (of.read[reader] * of.d + feature) * of.b;
                for (int64_t tile = begin; tile < std::min(tiles, begin + many_at_once); ++tile) {
                    const int64_t first = tile * TILE, many = std::min(TILE, of.b - first);
                    Vector one[VECTORS], gate[VECTORS];
                    take(from + first, many, one);
                    of.open(reader, feature, tile, gate);
                    for (int64_t i = 0; i < VECTORS; ++i) one[i] = (one[i] + one[i]) / gate[i];
                    give(one, many, z + place * of.b + first);
                }
            }
    }
}

// Gradients of ``gate_features``: of x, written, and of the weights, added to what is there
template <typename T>
void ungate_features(const Gates& of, const T* x, const T* dz, T* dx, float* ddown, float* dup, int threads) {
    const int64_t tiles = of.tiles(), weights = of.weights(), shares = std::min<int64_t>(threads, tiles);
    std::vector<float> grown(shares * 2 * weights);
#pragma omp parallel for schedule(static) num_threads(threads) if (!of.few())
    for (int64_t share = 0; share < shares; ++share) {
        const int64_t width = of.d * VECTORS;
        std::vector<Vector> read(width), of_read(width), of_logit(width), of_low(of.r * VECTORS);
        float *of_down = grown.data() + share * 2 * weights, *of_up = of_down + weights;
        for (int64_t task = share; task < tiles * of.u; task += shares) {
            const int64_t unit = task / tiles, tile = task % tiles, first = tile * TILE;
            const int64_t many = std::min(TILE, of.b - first);
            of.take_unit(x, unit, tile, read.data());
            std::fill(of_read.begin(), of_read.end(), Vector{});
            for (int64_t reader = 0; reader < of.n; ++reader) {
                if (of.read[reader] != unit) continue;
                const Vector* low = of.lowered(tile, reader);
                const float *down = of.down + reader * of.r * of.d, *up = of.up + reader * of.r * of.d;
                for (int64_t d = 0; d < of.d; ++d) {
                    const T* from = dz + (reader * of.d + d) * of.b + first; // so few that nothing fetches the next
                    for (int64_t i = 0; i < many; i += 64 / sizeof(T)) __builtin_prefetch(from + of.b + i);
                    Vector pull[VECTORS], gate[VECTORS], *logit = &of_logit[d * VECTORS];
                    take(from, many, pull);
                    of.open(reader, d, tile, gate);
                    for (int64_t i = 0; i < VECTORS; ++i) {
                        const Vector open = 1.0f / gate[i], by = (pull[i] + pull[i]) * open;
                        of_read[d * VECTORS + i] += by;
                        logit[i] = by * read[d * VECTORS + i] * (1.0f - open);
                    }
                    each<Multiply>(of_up + (reader * of.d + d) * of.r, 1, low, logit, of.r);
                }
                lower(up, 1, of.r, of_logit.data(), of.d, of_low.data(), of.r);
                for (int64_t d = 0; d < of.d; ++d) {
                    each<Multiply>(of_down + reader * of.r * of.d + d, of.d, of_low.data(), &read[d * VECTORS], of.r);
                    each<Gather>(down + d, of.d, of_low.data(), &of_read[d * VECTORS], of.r);
                }
            }
            for (int64_t d = 0; d < of.d; ++d)
                give(&of_read[d * VECTORS], many, dx + (unit * of.d + d) * of.b + first);
        }
    }
    for (int64_t share = 0; share < shares; ++share) {
        const float* of_down = grown.data() + share * 2 * weights;
        for (int64_t w = 0; w < weights; ++w) ddown[w] += of_down[w];
        for (int64_t w = 0; w < weights; ++w) dup[w] += of_down[weights + w];
    }
}

} // namespace

extern "C" const int64_t tile = TILE;

#define EACH(T)                                                                                                        \
    extern "C" void gate_features_##T(const float* down, const float* up, const int64_t* read, Vector* low,            \
                                      const T* x, T* z, int64_t n, int64_t r, int64_t d, int64_t u, int64_t b,         \
                                      int threads) {                                                                   \
        gate_features({down, up, read, low, n, r, d, u, b}, x, z, threads);                                            \
    }                                                                                                                  \
    extern "C" void ungate_features_##T(const float* down, const float* up, const int64_t* read, Vector* low,          \
                                        const T* x, const T* dz, T* dx, float* ddown, float* dup, int64_t n,           \
                                        int64_t r, int64_t d, int64_t u, int64_t b, int threads) {                     \
        ungate_features({down, up, read, low, n, r, d, u, b}, x, dz, dx, ddown, dup, threads);                         \
    }

EACH(float32)
EACH(bfloat16)
