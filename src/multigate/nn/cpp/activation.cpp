// What stands behind a linear layer: its numbers normalised, activated and dropped out, in one pass over memory.

#include "vectors.h"

#include <cmath>
#include <vector>

namespace {

enum Norm { NONE, LAYER, BATCH };
constexpr float EPSILON = 1e-5f; // torch's

inline Vector logistic(Vector u) { // 1 / (1 + e^-u)
    const Vector least = Vector{} - 87.0f;
    return chosen((Words)(u < least), Vector{}, 1.0f / (1.0f + exponential(-u)));
}

// What becomes of u, and by how much that grows with it
struct Activated {
    Vector value, slope;
};

struct Relu {
    static Activated of(Vector u) {
        const Words off = (Words)(u <= 0.0f); // what is no number stays none
        return {chosen(off, Vector{}, u), chosen(off, Vector{}, Vector{} + 1.0f)};
    }
};

struct Silu {
    static Activated of(Vector u) {
        const Vector gate = logistic(u);
        return {u * gate, gate * (1.0f + u * (1.0f - gate))};
    }
};

// u times the share of a normal distribution below u, which is known to 1.5e-7 (Abramowitz and Stegun 7.1.26)
struct Gelu {
    static Activated of(Vector u) {
        const Vector above = chosen((Words)(u < 0.0f), -u, u), square = exponential(-0.5f * u * u);
        const Vector t = 1.0f / (1.0f + 0.231641900f * above); // .3275911 / sqrt(2)
        Vector tail = t * 0.5307027145f - 0.7265760135f; // coefficients halved
        tail = tail * t + 0.7107068705f;
        tail = tail * t - 0.142248368f;
        tail = tail * t + 0.127414796f;
        tail = tail * t * square;
        const Vector below = chosen((Words)(u < 0.0f), tail, 1.0f - tail);
        return {u * below, below + u * square * 0.398942280f};
    }
};

struct Tanh {
    static Activated of(Vector u) {
        const Words minus = (Words)(u < 0.0f);
        const Vector above = chosen(minus, -u, u), far = 1.0f - 2.0f / (1.0f + exponential(2.0f * above)), square = u * u;
        Vector near = square * (62.0f / 2835) - 17.0f / 315; // a series: of what is small 1 - 2 / (1 + 1) keeps nothing
        near = near * square + 2.0f / 15;
        near = near * square - 1.0f / 3;
        near = u + u * square * near;
        const Vector value = chosen((Words)(above < 0.3f), near, chosen(minus, -far, far));
        return {value, 1.0f - value * value};
    }
};

// A tile of u in place of which comes what it is activated to, or how that grows with it; one for each activation
template <typename Activation> void values(Vector* u) {
    for (int64_t i = 0; i < VECTORS; ++i) u[i] = Activation::of(u[i]).value;
}
template <typename Activation> void slopes(Vector* u) {
    for (int64_t i = 0; i < VECTORS; ++i) u[i] = Activation::of(u[i]).slope;
}
constexpr void (*VALUES[])(Vector*) = {values<Relu>, values<Silu>, values<Gelu>, values<Tanh>};
constexpr void (*SLOPES[])(Vector*) = {slopes<Relu>, slopes<Silu>, slopes<Gelu>, slopes<Tanh>};

// A row of each of ``n`` copies' ``h`` units (n, h, b): with a scale and a shift of the unit's where they are normalised,
// by the mean and variance of each row of a copy (n, b) or of each unit (n, h). Of what is dropped the byte is not below
// ``level``.
struct Layers {
    const float *scale, *shift;
    const uint8_t* bytes;
    float *mean, *variance;
    int64_t n, h, b, norm, activation, level;

    int64_t units() const { return n * h; }
    int64_t tiles() const { return (b + TILE - 1) / TILE; }
    int64_t spans() const { return norm == LAYER ? n * tiles() : units(); }
    int64_t held() const { return norm == NONE ? 0 : VECTORS * (norm == LAYER ? h : tiles()); } // vectors of a span
};

// What is normalised by moments of its own: a tile of a copy's rows, all units of it, or all rows of a unit
struct Span {
    const Layers& of;
    int64_t unit, units, row, rows, moment, moments; // the first and how many of each
    Vector mean[VECTORS], by[VECTORS]; // of each row of a tile: the mean, and 1 / the standard deviation

    Span(const Layers& of, int64_t at) : of(of) {
        if (of.norm == LAYER) {
            const int64_t copy = at % of.n;
            unit = copy * of.h, units = of.h, row = at / of.n * TILE, rows = std::min(TILE, of.b - row);
            moment = copy * of.b + row, moments = rows;
        } else {
            unit = at, units = 1, row = 0, rows = of.b, moment = at, moments = 1;
        }
        std::fill(mean, mean + VECTORS, Vector{});
        std::fill(by, by + VECTORS, Vector{} + 1.0f);
    }

    // Every tile of every unit: does(unit, where its rows begin in an array (n, h, b), how many they are)
    template <typename Does> void each(Does does) const {
        for (int64_t u = unit; u < unit + units; ++u)
            for (int64_t r = row; r < row + rows; r += TILE) does(u, u * of.b + r, std::min(TILE, row + rows - r));
    }

    // Of sums over tiles, those that moments are made of: each row's own, or one of all rows; divided by their number
    void averaged(Vector* sums) const {
        if (of.norm == BATCH) {
            const float sum = total<TILE>(reinterpret_cast<float*>(sums));
            std::fill(sums, sums + VECTORS, Vector{} + sum);
        }
        for (int64_t i = 0; i < VECTORS; ++i) sums[i] /= float(of.norm == LAYER ? of.h : of.b);
    }

    template <typename T> void measure(const T* z) {
        Vector x[VECTORS], square[VECTORS] = {};
        each([&](int64_t, int64_t at, int64_t count) {
            take(z + at, count, x);
            for (int64_t i = 0; i < VECTORS; ++i) mean[i] += x[i];
        });
        averaged(mean);
        each([&](int64_t, int64_t at, int64_t count) {
            take(z + at, count, x, mean);
            for (int64_t i = 0; i < VECTORS; ++i) square[i] += (x[i] - mean[i]) * (x[i] - mean[i]);
        });
        averaged(square);
        std::copy_n(reinterpret_cast<float*>(mean), moments, of.mean + moment);
        std::copy_n(reinterpret_cast<float*>(square), moments, of.variance + moment);
        know();
    }

    void know() { // what was measured
        float *means = reinterpret_cast<float*>(mean), *bys = reinterpret_cast<float*>(by);
        for (int64_t i = 0; i < moments; ++i) {
            means[i] = of.mean[moment + i];
            bys[i] = 1.0f / std::sqrt(of.variance[moment + i] + EPSILON);
        }
        std::fill(means + moments, means + TILE, means[moments - 1]);
        std::fill(bys + moments, bys + TILE, bys[moments - 1]);
    }

    template <typename T> void take(const T* from, int64_t count, Vector* to, const Vector* rest = nullptr) const {
        if (of.norm == LAYER) // the next unit's, of which so few rows are read here that nothing fetches them
            for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + of.b + i);
        ::take(from, count, to, rest);
    }

    // x times what dropout multiplies it by
    void drop(int64_t at, int64_t count, Vector* x) const {
        if (!of.bytes) return;
        const float kept = 256.0f / float(of.level);
        float* number = reinterpret_cast<float*>(x);
        for (int64_t i = 0; i < count; ++i) number[i] *= of.bytes[at + i] < of.level ? kept : 0.0f;
    }
};

// y = activated(normal(z) scale + shift), dropped out
template <typename T> void activate(const Layers& of, const T* z, T* y, int threads) {
    const int64_t spans = of.spans();
#pragma omp parallel for schedule(static) num_threads(threads) if (of.units() * of.b > FEW)
    for (int64_t at = 0; at < spans; ++at) {
        Span span(of, at);
        if (of.norm != NONE) span.measure(z);
        span.each([&](int64_t unit, int64_t place, int64_t count) {
            const float scale = of.norm == NONE ? 1.0f : of.scale[unit], shift = of.norm == NONE ? 0.0f : of.shift[unit];
            Vector x[VECTORS];
            span.take(z + place, count, x);
            for (int64_t i = 0; i < VECTORS; ++i) x[i] = (x[i] - span.mean[i]) * span.by[i] * scale + shift;
            VALUES[of.activation](x);
            span.drop(place, count, x);
            give(x, count, y + place);
        });
    }
}

// Gradients of z, and of scale and shift of the units (n, h), from that of ``activate``
template <typename T>
void of_activated(const Layers& of, const T* z, const T* dy, T* dz, float* dscale, float* dshift, int threads) {
    const int64_t spans = of.spans(), shares = std::min<int64_t>(threads, spans), units = of.units();
    std::vector<Vector> grown(of.norm == NONE ? 0 : shares * 2 * units);
#pragma omp parallel for schedule(static) num_threads(threads) if (units * of.b > FEW)
    for (int64_t share = 0; share < shares; ++share) {
        Vector *of_scale = grown.data() + share * 2 * units, *of_shift = of_scale + units;
        std::vector<Vector> held(of.held()); // gradients of what is normalised, tile after tile
        for (int64_t at = spans * share / shares; at < spans * (share + 1) / shares; ++at) {
            Span span(of, at);
            if (of.norm != NONE) span.know();
            Vector whole[VECTORS] = {}, along[VECTORS] = {};
            Vector* last = held.data();
            span.each([&](int64_t unit, int64_t place, int64_t count) {
                const float scale = of.norm == NONE ? 1.0f : of.scale[unit], shift = of.norm == NONE ? 0.0f : of.shift[unit];
                Vector x[VECTORS], pull[VECTORS], slope[VECTORS], all{}, by_scale{};
                span.take(z + place, count, x, span.mean);
                span.take(dy + place, count, pull);
                span.drop(place, count, pull);
                for (int64_t i = 0; i < VECTORS; ++i) {
                    x[i] = (x[i] - span.mean[i]) * span.by[i];
                    slope[i] = x[i] * scale + shift;
                }
                SLOPES[of.activation](slope);
                for (int64_t i = 0; i < VECTORS; ++i) pull[i] *= slope[i];
                if (of.norm == NONE) return give(pull, count, dz + place);
                for (int64_t i = 0; i < VECTORS; ++i) {
                    all += pull[i], by_scale += pull[i] * x[i];
                    pull[i] *= scale;
                    whole[i] += pull[i], along[i] += pull[i] * x[i];
                }
                last = std::copy_n(pull, VECTORS, last);
                of_shift[unit] += all, of_scale[unit] += by_scale;
            });
            if (of.norm == NONE) continue;
            span.averaged(whole), span.averaged(along);
            const Vector* next = held.data();
            span.each([&](int64_t, int64_t place, int64_t count) {
                Vector x[VECTORS];
                span.take(z + place, count, x);
                for (int64_t i = 0; i < VECTORS; ++i) {
                    const Vector normal = (x[i] - span.mean[i]) * span.by[i];
                    x[i] = span.by[i] * (next[i] - whole[i] - normal * along[i]);
                }
                give(x, count, dz + place);
                next += VECTORS;
            });
        }
    }
    if (of.norm == NONE) return;
    for (int64_t share = 0; share < shares; ++share)
        for (int64_t unit = 0; unit < units; ++unit) {
            dscale[unit] += total<LANES>(reinterpret_cast<float*>(&grown[share * 2 * units + unit]));
            dshift[unit] += total<LANES>(reinterpret_cast<float*>(&grown[(share * 2 + 1) * units + unit]));
        }
}

} // namespace

#define EACH(T)                                                                                                        \
    extern "C" void activate_##T(const T* z, const float* scale, const float* shift, const uint8_t* bytes,             \
                                 float* mean, float* variance, T* y, int64_t n, int64_t h, int64_t b, int64_t norm,    \
                                 int64_t which, int64_t level, int threads) {                                          \
        const Layers of{scale, shift, bytes, mean, variance, n, h, b, norm, which, level};                             \
        activate(of, z, y, threads);                                                                                   \
    }                                                                                                                  \
    extern "C" void of_activated_##T(const T* z, const float* scale, const float* shift, const uint8_t* bytes,         \
                                     float* mean, float* variance, const T* dy, T* dz, float* dscale, float* dshift,   \
                                     int64_t n, int64_t h, int64_t b, int64_t norm, int64_t which, int64_t level,      \
                                     int threads) {                                                                    \
        const Layers of{scale, shift, bytes, mean, variance, n, h, b, norm, which, level};                             \
        of_activated(of, z, dy, dz, dscale, dshift, threads);                                                          \
    }

EACH(float32)
EACH(bfloat16)
