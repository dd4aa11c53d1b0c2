// The loops of cpu.py over a weight: each reads a filter's numbers from memory once
// and writes them at most once. What it reads again lies in the processor's cache.
//
// A weight (N, C, *space) is N filters of C channels of K places, which lie as (C, K), or with the
// channels innermost as (K, C). Filters are shared among threads and each is summed by itself, so
// that no result depends on the number of threads. Sums over a whole filter are kept in double. The
// order in which numbers are added is written down, and nothing is fused: on every x86-64 with AVX2
// the results are the same to the last bit.
//
// Beside the weight stand small tensors: of filters (N), of channels (N, C), of places (N, K). A
// null pointer to a centre means 0, to a scale 1, to a gradient 0, to a result that nobody asks for
// it. Of equal maxima the first counts, and what is no number is larger than all.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace {

using Index = std::int64_t;

struct Shape {
  Index N, C, K;
  Index size() const { return C * K; }
};

template <class T>
struct Four {
  T space, channels, first, second;
};

// Sums of a loop, in lanes: number i goes to lane i mod 8, so that the order in which numbers are
// added stands here and is no compiler's and no processor's choice.
constexpr Index LANES = 8;

template <class S>
struct Lanes {
  S lane[LANES] = {};
  S total() const {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
};

// f(i, j) for i < count, j its lane.
template <class F>
inline void by_lanes(Index count, F f) {
  Index i = 0;
  for (; i + LANES <= count; i += LANES) {
#pragma omp simd
    for (Index j = 0; j < LANES; j++) f(i + j, j);
  }
  for (Index j = 0; i < count; i++, j++) f(i, j);
}

// One filter's part of the arguments.
template <class T, bool last>
struct Filter {
  Shape s;
  Index n;
  T* const* arguments;

  T* part(int i, Index size) const { return arguments[i] ? arguments[i] + n * size : nullptr; }
  T* numbers(int i) const { return part(i, s.size()); }
  T* channels(int i) const { return part(i, s.C); }
  T* places(int i) const { return part(i, s.K); }
  T one(int i, T otherwise) const { return arguments[i] ? arguments[i][n] : otherwise; }
  void set(int i, double value) const {
    if (arguments[i]) arguments[i][n] = T(value);
  }

  // The filter's part of a second (N, C) that lies below the first.
  template <class P>
  P below(P part) const { return part + s.N * s.C; }

  Index at(Index c, Index k) const { return last ? k * s.C + c : c * s.K + k; }

  // f(i, c, k) for every number, i its place in memory.
  template <class F>
  void each(F f) const {
    if constexpr (last) {
      by_place(f);
    } else {
      for (Index c = 0; c < s.C; c++)
        for (Index k = 0; k < s.K; k++) f(c * s.K + k, c, k);
    }
  }

  // The same, channels side by side even where they do not lie so.
  template <class F>
  void by_place(F f) const {
    for (Index k = 0; k < s.K; k++) {
#pragma omp simd
      for (Index c = 0; c < s.C; c++) f(at(c, k), c, k);
    }
  }

  // Σ f(i) over all numbers.
  template <class F>
  double sum(F f) const {
    Lanes<double> sums;
    by_lanes(s.size(), [&](Index i, Index j) { sums.lane[j] += f(i); });
    return sums.total();
  }

  // sums[c] = Σ_k f(i, c, k).
  template <class F>
  void sum_space(T* sums, F f) const {
    if constexpr (last) {
      std::fill_n(sums, s.C, T(0));
      each([=](Index i, Index c, Index k) { sums[c] += f(i, c, k); });
    } else {
      for (Index c = 0; c < s.C; c++) {
        T total = 0;
        for (Index k = 0; k < s.K; k++) total += f(c * s.K + k, c, k);
        sums[c] = total;
      }
    }
  }

  // Of a number's four: the sums over space and over channels, and, returned, two sums of all.
  template <class F>
  std::pair<double, double> sum_both(T* by_channel, T* by_place, F f) const {
    std::fill_n(by_channel, s.C, T(0));
    std::fill_n(by_place, s.K, T(0));
    double first = 0, second = 0;
    if constexpr (last) {
      for (Index k = 0; k < s.K; k++) {
        Lanes<T> channels, one, other;
        by_lanes(s.C, [&](Index c, Index j) {
          const Four<T> more = f(k * s.C + c, c, k);
          by_channel[c] += more.space;
          channels.lane[j] += more.channels, one.lane[j] += more.first, other.lane[j] += more.second;
        });
        by_place[k] = channels.total(), first += one.total(), second += other.total();
      }
    } else {
      for (Index c = 0; c < s.C; c++) {
        T space = 0, one = 0, other = 0;
        for (Index k = 0; k < s.K; k++) {
          const Four<T> more = f(c * s.K + k, c, k);
          by_place[k] += more.channels;
          space += more.space, one += more.first, other += more.second;
        }
        by_channel[c] = space, first += one, second += other;
      }
    }
    return {first, second};
  }
};

template <class T, bool last>
void run(void (*pass)(Filter<T, last>), Shape s, int threads, T* const* arguments) {
#pragma omp parallel for num_threads(threads)
  for (Index n = 0; n < s.N; n++) pass(Filter<T, last>{s, n, arguments});
}

template <class T>
double total(const T* values, Index count) {
  Lanes<double> sums;
  by_lanes(count, [&](Index i, Index j) { sums.lane[j] += values[i]; });
  return sums.total();
}

template <class T>
T blend(T start, T end, T strength) {  // for 0 and 1 one of them to the last bit, and no branch
  return (1 - strength) * start + strength * end;
}

// artanh(u) = artanh(t) + ½·ln(s) with t = ((1 + u) − s·(1 − u)) / ((1 + u) + s·(1 − u)), for |u| < 1.
// With s = 1 up to |u| = 1/3 and the next power of two beyond, |t| ≤ 1/3, and the series is short. So
// a loop over it runs in vectors, as one that calls the library does not.
inline float artanh_of(float u) {
  const float v = std::abs(u), b = 1.5f * (1 - v);
  std::int32_t bits;
  std::memcpy(&bits, &b, sizeof b);
  const std::int32_t j = 127 - (bits >> 23), e = j > 0 ? j + 1 : 0;  // 2^−j ≤ b < 2^(1 − j)
  const std::int32_t power = (127 + e) << 23;
  float s;
  std::memcpy(&s, &power, sizeof s);
  const float above = j > 0 ? (1 + v) - s * (1 - v) : 2 * v;
  const float t = above / ((1 + v) + s * (1 - v)), x = t * t;
  float series = 1 / 15.f;
  for (int n = 13; n > 0; n -= 2) series = series * x + 1.f / n;
  return std::copysign(t * series + 0.34657359f * e, u);
}
inline double artanh_of(double u) { return std::atanh(u); }

// The largest number of every channel, and its place.
template <class T, bool last>
void maxima(Filter<T, last> f, const T* w, T* maximum, T* place) {
  for (Index c = 0; c < f.s.C; c++) maximum[c] = w[f.at(c, 0)], place[c] = 0;
  f.by_place([=](Index i, Index c, Index k) {
    const bool larger = w[i] > maximum[c] || w[i] != w[i];
    maximum[c] = larger ? w[i] : maximum[c];
    place[c] = larger ? T(k) : place[c];
  });
}

// weight; mean (N, C) and below it maximum (N, C) of the kernels, this with its place (N, C)
template <class T, bool last>
void pool_space(Filter<T, last> f) {
  const T* w = f.numbers(0);
  T *mean = f.channels(1), *place = f.channels(2);
  f.sum_space(mean, [=](Index i, Index, Index) { return w[i]; });
  for (Index c = 0; c < f.s.C; c++) mean[c] /= f.s.K;
  if (place) maxima(f, w, f.below(mean), place);
}

// d_mean and below it d_maximum, place (N, C); gradient, added to
template <class T, bool last>
void pool_space_backward(Filter<T, last> f) {
  T* g = f.numbers(2);
  const T *d_mean = f.channels(0), *place = f.channels(1), size = T(f.s.K);
  f.each([=](Index i, Index c, Index) { g[i] += d_mean[c] / size; });
  if (!place) return;
  const T* d_maximum = f.below(d_mean);
  for (Index c = 0; c < f.s.C; c++) g[f.at(c, Index(place[c]))] += d_maximum[c];
}

// weight, centre, std, scale (N); of what is standardized, mean and below it maximum, place (N, C)
template <class T, bool last>
void standardized(Filter<T, last> f) {
  const T* w = f.numbers(0);
  T *mean = f.channels(4), *place = f.channels(5);
  // From the first number on, so that a filter of equal ones has exactly their value.
  const double first = w[0];
  const T centre = T(first + f.sum([=](Index i) { return w[i] - first; }) / f.s.size());
  const double squares = f.sum([=](Index i) {
    const double d = w[i] - centre;
    return d * d;
  });
  const T std = T(std::sqrt(squares / (f.s.size() - 1)));
  const T scale = 1 / (std + T(1e-5));
  f.set(1, centre);
  // A constant filter has no direction in which its deviation grows: over inf, the slope is 0.
  f.set(2, std == 0 ? std::numeric_limits<T>::infinity() : std);
  f.set(3, scale);
  f.sum_space(mean, [=](Index i, Index, Index) { return w[i] - centre; });
  for (Index c = 0; c < f.s.C; c++) mean[c] = mean[c] / f.s.K * scale;
  if (!place) return;
  T* maximum = f.below(mean);
  maxima(f, w, maximum, place);
  for (Index c = 0; c < f.s.C; c++) maximum[c] = (maximum[c] - centre) * scale;
}

// weight, centre, std, scale (N), pooled as above, d_centre, d_std, d_scale (N), d_pooled, place (N,
// C); gradient, added to
template <class T, bool last>
void standardized_backward(Filter<T, last> f) {
  const T *w = f.numbers(0), *pooled = f.channels(4), *d_pooled = f.channels(8);
  const T* place = d_pooled ? f.channels(9) : nullptr;
  T* g = f.numbers(10);
  const double centre = f.one(1, 0), std = f.one(2, 0), scale = f.one(3, 0), n = f.s.size();
  double d_centre = f.one(5, 0), d_scale = scale * f.one(7, 0);
  const auto add = [&](const T* value, const T* gradient) {
    Lanes<double> sum, product;
    by_lanes(f.s.C, [&](Index c, Index j) {
      sum.lane[j] += gradient[c];
      product.lane[j] += double(gradient[c]) * value[c];
    });
    d_scale += product.total();
    d_centre -= scale * sum.total();
  };
  if (d_pooled) add(pooled, d_pooled);
  if (place) add(f.below(pooled), f.below(d_pooled));
  const T factor = T((f.one(6, 0) - scale * d_scale) / (std * (n - 1)));
  const T rest = T(d_centre / n), share = T(scale / f.s.K), middle = T(centre);
  if (d_pooled)
    f.each([=](Index i, Index c, Index) {
      g[i] += (w[i] - middle) * factor + (rest + share * d_pooled[c]);
    });
  else
    f.each([=](Index i, Index, Index) { g[i] += (w[i] - middle) * factor + rest; });
  if (!place) return;
  const T* d_maximum = f.below(d_pooled);
  for (Index c = 0; c < f.s.C; c++) g[f.at(c, Index(place[c]))] += d_maximum[c] * T(scale);
}

// weight, centre, scale (N), gate (N, C), pooled (N, 2, K), place (N, K)
template <class T, bool last>
void pool_channels(Filter<T, last> f) {
  const T *w = f.numbers(0), *gate = f.channels(3);
  const T centre = f.one(1, 0), scale = f.one(2, 1);
  T *maximum = f.part(4, 2 * f.s.K), *mean = maximum + f.s.K, *place = f.places(5);
  const auto x = [=](Index i, Index c) { return (w[i] - centre) * gate[c]; };
  if constexpr (last) {
    for (Index k = 0; k < f.s.K; k++) {
      const Index row = k * f.s.C;
      T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest)
      for (Index c = 0; c < f.s.C; c++) largest = std::max(largest, x(row + c, c));
      Lanes<T> sums;
      by_lanes(f.s.C, [&](Index c, Index j) { sums.lane[j] += x(row + c, c); });
      const T sum = sums.total();
      Index c = 0;
      while (c < f.s.C - 1 && x(row + c, c) != largest) c++;
      maximum[k] = sum == sum ? largest : sum, mean[k] = sum, place[k] = T(c);
    }
  } else {
    for (Index k = 0; k < f.s.K; k++) maximum[k] = mean[k] = x(k, 0), place[k] = 0;
    for (Index c = 1; c < f.s.C; c++) {
#pragma omp simd
      for (Index k = 0; k < f.s.K; k++) {
        const T value = x(c * f.s.K + k, c);
        const bool larger = value > maximum[k] || value != value;
        maximum[k] = larger ? value : maximum[k];
        place[k] = larger ? T(c) : place[k];
        mean[k] += value;
      }
    }
  }
  for (Index k = 0; k < f.s.K; k++) maximum[k] *= scale, mean[k] *= scale / f.s.C;
}

// weight, centre, scale (N), gate (N, C), pooled (N, 2, K), place (N, K), d_pooled (N, 2, K);
// gradient, added to; d_gate (N, C), d_centre, d_scale (N)
template <class T, bool last>
void pool_channels_backward(Filter<T, last> f) {
  const T *w = f.numbers(0), *gate = f.channels(3), *place = f.places(5);
  const T *pooled = f.part(4, 2 * f.s.K), *d_pooled = f.part(6, 2 * f.s.K);
  const T *d_maximum = d_pooled, *d_mean = d_pooled + f.s.K;
  const T centre = f.one(1, 0), scale = f.one(2, 1), share = scale / f.s.C;
  T *g = f.numbers(7), *d_gate = f.channels(8);
  f.sum_space(d_gate, [=](Index i, Index c, Index k) {
    const T d = d_mean[k] * share;
    g[i] += gate[c] * d;
    return (w[i] - centre) * d;
  });
  double d_centre = total(gate, f.s.C) * total(d_mean, f.s.K) / f.s.C, d_scale = 0;
  for (Index k = 0; k < f.s.K; k++) {
    const Index c = Index(place[k]), i = f.at(c, k);
    const T d = d_maximum[k] * scale;
    g[i] += d * gate[c];
    d_gate[c] += d * (w[i] - centre);
    d_centre += double(d_maximum[k]) * gate[c];
    d_scale += double(d_maximum[k]) * pooled[k] + double(d_mean[k]) * pooled[f.s.K + k];
  }
  f.set(9, -d_centre * scale);
  f.set(10, d_scale / scale);
}

// weight, centre, scale (N), gate (N, C), result
template <class T, bool last>
void dense(Filter<T, last> f) {
  const T *w = f.numbers(0), *gate = f.channels(3);
  const T centre = f.one(1, 0), scale = f.one(2, 1);
  T* y = f.numbers(4);
  if (gate)
    f.each([=](Index i, Index c, Index) { y[i] = (w[i] - centre) * (gate[c] * scale); });
  else
    f.each([=](Index i, Index, Index) { y[i] = (w[i] - centre) * scale; });
}

// weight, centre, scale (N), gate (N, C), gradient, d_weight, d_centre, d_scale (N), d_gate (N, C)
template <class T, bool last>
void dense_backward(Filter<T, last> f) {
  const T *w = f.numbers(0), *gate = f.channels(3), *g = f.numbers(4);
  const T centre = f.one(1, 0), scale = f.one(2, 1);
  T *d_weight = f.numbers(5), *d_gate = f.channels(8);
  double d_scale = 0;
  if (gate) {
    f.sum_space(d_gate, [=](Index i, Index c, Index) {
      d_weight[i] = g[i] * (gate[c] * scale);
      return (w[i] - centre) * g[i];
    });
    for (Index c = 0; c < f.s.C; c++) d_scale += double(gate[c]) * d_gate[c];
    for (Index c = 0; c < f.s.C; c++) d_gate[c] *= scale;
  } else {
    d_scale = f.sum([=](Index i) { return double(w[i] - centre) * g[i]; });
    f.each([=](Index i, Index, Index) { d_weight[i] = g[i] * scale; });
  }
  if (f.arguments[6]) f.set(6, -f.sum([=](Index i) { return double(d_weight[i]); }));
  f.set(7, d_scale);
}

// What a number is multiplied with, 1 − s + s·m, where m = a·b, or with skips (1 + a)·(1 + b) + a.
// With A = a, B = b, or A = 1 + a, B = 2 + b, m is A·B, or A·B − 1.
template <class T>
struct Multiplier {
  T skip, strength, rest;
  Multiplier(const T* strength, const T* skips)
      : skip(skips ? 1 : 0), strength(*strength), rest(1 - *strength - *strength * skip) {}
  T A(T a) const { return skip + a; }
  T B(T b) const { return 2 * skip + b; }
  T operator()(T A, T B) const { return A * B * strength + rest; }
};

// weight, centre, scale (N), a (N, C), b (N, K), strength (1), and this again with skips; result
template <class T, bool last>
void two_gates(Filter<T, last> f) {
  const T *w = f.numbers(0), *a = f.channels(3), *b = f.places(4);
  const T centre = f.one(1, 0), scale = f.one(2, 1);
  const Multiplier<T> m(f.arguments[5], f.arguments[6]);
  T* y = f.numbers(7);
  f.each([=](Index i, Index c, Index k) {
    y[i] = (w[i] - centre) * scale * m(m.A(a[c]), m.B(b[k]));
  });
}

// weight, centre, scale (N), a (N, C), b (N, K), strength (1), and this again with skips, gradient;
// d_weight, d_centre, d_scale (N), d_a (N, C), d_b (N, K)
template <class T, bool last>
void two_gates_backward(Filter<T, last> f) {
  const T *w = f.numbers(0), *a = f.channels(3), *b = f.places(4), *g = f.numbers(7);
  const T centre = f.one(1, 0), scale = f.one(2, 1);
  const Multiplier<T> m(f.arguments[5], f.arguments[6]);
  T *d_weight = f.numbers(8), *d_a = f.channels(11), *d_b = f.places(12);
  const auto [sum, by_x] = f.sum_both(d_a, d_b, [=](Index i, Index c, Index k) {
    const T A = m.A(a[c]), B = m.B(b[k]);
    const T x = w[i] - centre, d_x = g[i] * m(A, B), d_m = x * g[i];
    d_weight[i] = d_x * scale;
    return Four<T>{d_m * B, d_m * A, d_x, d_x * x};
  });
  const T factor = scale * m.strength;
  for (Index c = 0; c < f.s.C; c++) d_a[c] *= factor;
  for (Index k = 0; k < f.s.K; k++) d_b[k] *= factor;
  f.set(9, -sum * scale);
  f.set(10, by_x);
}

template <class T>
bool exceeds(T value, T other) {
  return value > other || (value != value && other == other);
}

template <class T, bool last>
void largest_of_filter(Filter<T, last> f) {
  const T* w = f.numbers(0);
  const T centre = f.one(1, 0);
  T found = 0;
  bool none = false;
#pragma omp simd reduction(max : found) reduction(|| : none)
  for (Index i = 0; i < f.s.size(); i++) {
    const T size = std::abs(w[i] - centre);
    found = std::max(found, size);
    none = none || size != size;
  }
  f.set(4, none ? std::numeric_limits<T>::quiet_NaN() : found * f.one(2, 1));
}

// weight, centre, scale (N), 1 + ε (1); each filter's largest |x| (N), M (1), and of the largest of
// all its filter, its place in there, as (C, K), and its sign (3)
template <class T, bool last>
void largest(Shape s, int threads, T* const* arguments) {
  run(largest_of_filter<T, last>, s, threads, arguments);
  const T *each = arguments[4], smallest = T(0x1p-100);  // SMALLEST of formulas.py
  Index n = 0;
  for (Index i = 1; i < s.N; i++)
    if (exceeds(each[i], each[n])) n = i;
  const Filter<T, last> f{s, n, arguments};
  const T *w = f.numbers(0), centre = f.one(1, 0);
  T x = w[0] - centre;
  Index place = 0;
  for (Index c = 0; c < s.C; c++)
    for (Index k = 0; k < s.K; k++) {
      const T other = w[f.at(c, k)] - centre;
      if (exceeds(std::abs(other), std::abs(x))) x = other, place = c * s.K + k;
    }
  const bool counts = each[n] >= smallest;
  *arguments[5] = *arguments[3] * (each[n] < smallest ? smallest : each[n]);
  T* at = arguments[6];
  at[0] = T(n), at[1] = T(place), at[2] = counts ? T((x > 0) - (x < 0)) : T(0);
}

// weight, centre, scale (N), M and strength (1), result
template <class T, bool last>
void artanh(Filter<T, last> f) {
  const T* w = f.numbers(0);
  const T centre = f.one(1, 0), scale = f.one(2, 1), m = *f.arguments[3];
  const T strength = *f.arguments[4];
  T* y = f.numbers(5);
  const T over = scale / m;
#pragma omp simd
  for (Index i = 0; i < f.s.size(); i++) {
    const T x = w[i] - centre;
    y[i] = blend(x * scale, m * artanh_of(x * over), strength);
  }
}

template <class T, bool last>
void artanh_backward_of_filter(Filter<T, last> f) {
  const T *w = f.numbers(0), *y = f.numbers(7), *g = f.numbers(8);
  const T centre = f.one(1, 0), scale = f.one(2, 1), m = *f.arguments[3];
  const T strength = *f.arguments[4];
  T* d_weight = f.numbers(10);
  Lanes<double> sums, x_sums, y_sums;
  by_lanes(f.s.size(), [&](Index i, Index j) {
    const T x = (w[i] - centre) * scale, u = x / m;
    const T d_x = g[i] * blend(T(1), 1 / (1 - u * u), strength);
    d_weight[i] = d_x * scale;
    sums.lane[j] += d_x;
    x_sums.lane[j] += d_x * x;
    y_sums.lane[j] += g[i] * y[i];
  });
  const double sum = sums.total(), by_x = x_sums.total(), by_y = y_sums.total();
  f.set(11, -sum * scale);
  f.set(12, by_x / scale);
  f.set(13, by_y - by_x);
}

// weight, centre, scale (N), M, strength, 1 + ε (1), the largest number (3), result, gradient, d_M
// (1); d_weight, d_centre, d_scale (N), and each filter's part of M·d_M through the result (N)
template <class T, bool last>
void artanh_backward(Shape s, int threads, T* const* arguments) {
  run(artanh_backward_of_filter<T, last>, s, threads, arguments);
  const T *at = arguments[6], m = *arguments[3], sign = at[2];
  const double d_m = *arguments[9] + total(arguments[13], s.N) / m;
  const double d_largest = *arguments[5] * d_m * sign;
  const Index place = Index(at[1]);
  const Filter<T, last> f{s, Index(at[0]), arguments};
  const T scale = f.one(2, 1);
  f.numbers(10)[f.at(place / s.K, place % s.K)] += T(d_largest * scale);
  f.set(11, f.one(11, 0) - d_largest * scale);
  f.set(12, f.one(12, 0) + d_m * m * std::abs(sign) / scale);
}

template <class T>
void run(void (*pass)(Shape, int, T* const*), Shape s, int threads, T* const* arguments) {
  pass(s, threads, arguments);
}

}  // namespace

#define TYPED(pass, T)                                                                       \
  extern "C" void pass##_##T(int last, int threads, Index N, Index C, Index K, T** arguments) { \
    if (last)                                                                                \
      run(pass<T, true>, Shape{N, C, K}, threads, arguments);                                \
    else                                                                                     \
      run(pass<T, false>, Shape{N, C, K}, threads, arguments);                               \
  }
#define EXPORT(pass) TYPED(pass, float) TYPED(pass, double)

EXPORT(pool_space)
EXPORT(pool_space_backward)
EXPORT(standardized)
EXPORT(standardized_backward)
EXPORT(pool_channels)
EXPORT(pool_channels_backward)
EXPORT(dense)
EXPORT(dense_backward)
EXPORT(two_gates)
EXPORT(two_gates_backward)
EXPORT(largest)
EXPORT(artanh)
EXPORT(artanh_backward)
