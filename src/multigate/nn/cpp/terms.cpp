// Which values, and pairs of them, the columns of a batch have: the terms that a first layer adds up.

#include "numbers.h"

#include <array>
#include <utility>
#include <vector>

namespace {

constexpr int64_t MEET = 48;  // pairs of terms that are one term, at most: all lie in the nearest cache
constexpr int64_t SOME = 256; // rows that are read before pairs are counted
constexpr int64_t TRIES = 8;  // terms that a column is tried with

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
