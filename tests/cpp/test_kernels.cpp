// Tests the kernels of one instruction set, the one that the environment variable CRRELU_EXT_ISA
// names, without PyTorch: accuracy, limits, sums, and that a result depends on its element alone.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>

#include "accuracy.h"
#include "cpu/dispatch.h"

namespace crrelu {
namespace {

int failures = 0;
constexpr int kMostPrinted = 20;

__attribute__((format(printf, 2, 3))) void check(bool passed, const char* format, ...) {
  if (passed || ++failures > kMostPrinted) return;
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED: ");
  std::vprintf(format, arguments);
  std::printf("\n");
  va_end(arguments);
}

/// Whether the parameter is the tensor's only one; every test is run for both.
bool only;

template <class S>
PlainKernels kernels() {
  return plain_kernels<S>(instruction_set(), only);
}

bool same_bits(double a, double b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

// ---- Accuracy

/// Adds about `count` numbers from `first` to `last`, spread evenly over their bit patterns and so
/// over the exponents, and their negatives.
template <class S>
void add_range(Oracle<S>& oracle, S first, S last, int count) {
  using Bits = std::conditional_t<sizeof(S) == 4, uint32_t, uint64_t>;
  Bits begin, end;
  std::memcpy(&begin, &first, sizeof(S));
  std::memcpy(&end, &last, sizeof(S));
  const Bits step = (end - begin) / count | 1;  // odd, so that the last bits vary too
  for (Bits bits = begin; bits <= end; bits += step) {
    S x;
    std::memcpy(&x, &bits, sizeof(S));
    oracle.add(x);
    oracle.add(-x);
  }
}

template <class S>
Oracle<S> sample() {
  if constexpr (kIs16Bit<S>) {
    return Oracle<S>::all();
  } else {
    Oracle<S> oracle;
    const int count = sizeof(S) == 4 ? 50000 : 10000;  // what double is judged by is slow
    add_range<S>(oracle, 0, std::numeric_limits<S>::quiet_NaN(), count);
    add_range<S>(oracle, 0x1p-10, 64, 3 * count);  // where terms meet
    return oracle;
  }
}

template <class S>
std::vector<Real<S>> epsilons() {
  // Among them the least and the largest that may be multiplied into the powers, and significands
  // next to 2.
  std::vector<Real<S>> values = {0.01, -0.5, -1.69, 1,      0,    1e-3,  0x1p-20,         1.9999999,
                                 2.24, 37,   1e6,   0x1p50, 1e30, -1e38, -0x1.fffffep-20, 1e-30};
  if constexpr (std::is_same_v<S, double>)
    values.insert(values.end(), {0x1p-400, 0x1p400, 1e300, -1e308, 1e-300});
  return values;
}

template <class S>
void test_accuracy(const Oracle<S>& oracle) {
  Errors largest;
  for (const auto epsilon : epsilons<S>()) {
    Errors errors;
    errors.update(kernels<S>(), oracle, epsilon);
    check(errors.within_bounds<S>(),
          "%s, epsilon %g: errors of f, df/dx, df/depsilon are %.3f at x = %.17g, %.3f at %.17g, "
          "%.3f at %.17g",
          Stored<S>::kName, double(epsilon), errors.value.error, errors.value.x, errors.slope.error,
          errors.slope.x, errors.epsilon_slope.error, errors.epsilon_slope.x);
    largest.update(errors);
  }
  std::printf("%-8s largest errors of f, df/dx, df/depsilon: %.3f, %.3f, %.3f\n", Stored<S>::kName,
              largest.value.error, largest.slope.error, largest.epsilon_slope.error);
}

template <class S>
double largest_number() {
  if constexpr (kIs16Bit<S>) {
    return Ordinal<S>::value(Ordinal<S>::kInfinity - 1);
  } else {
    return std::numeric_limits<S>::max();
  }
}

template <class S>
S minus_zero() {
  if constexpr (kIs16Bit<S>) {
    return S{0x8000};
  } else {
    return -S(0);
  }
}
template <class S>
bool is_minus_zero(S x) {
  const S known = minus_zero<S>();
  return std::memcmp(&x, &known, sizeof(S)) == 0;
}

/// Limits that are known without an oracle.
template <class S>
void test_limits() {
  const double inf = INFINITY, most = largest_number<S>();
  const auto is = [](S result, double known) {
    return std::isnan(known) ? std::isnan(widen(result)) : widen(result) == known;
  };
  for (const Real<S> epsilon : {0.01f, -1.69f, 1e6f, -1e38f}) {
    const double at_0 = widen(rounded<S>(epsilon));  // the kink takes ReLU's 0
    const struct {
      double x, value, slope, epsilon_slope;
    } limits[] = {{NAN, NAN, NAN, NAN}, {inf, inf, 1, 0},  {-inf, 0, 0, 0},   {most, most, 1, 0},
                  {-most, 0, 0, 0},     {0.0, 0, at_0, 0}, {-0.0, 0, at_0, 0}};
    const S at_minus_0 = Results<S>(kernels<S>(), {minus_zero<S>()}, epsilon).value[0];
    check(is_minus_zero(at_minus_0) == (epsilon > 0),
          "%s, epsilon %g: f(-0) has another sign than ReLU's plus the bump's", Stored<S>::kName,
          double(epsilon));
    for (const auto& limit : limits) {
      const Results<S> results(kernels<S>(), {rounded<S>(limit.x)}, epsilon);
      check(is(results.value[0], limit.value) && is(results.slope[0], limit.slope) &&
                is(results.epsilon_slope[0], limit.epsilon_slope),
            "%s, epsilon %g: f, df/dx, df/depsilon at %g are %g, %g, %g", Stored<S>::kName,
            double(epsilon), limit.x, double(widen(results.value[0])),
            double(widen(results.slope[0])), double(widen(results.epsilon_slope[0])));
    }
  }
  const Results<S> results(kernels<S>(), {rounded<S>(-1), rounded<S>(0), rounded<S>(1)}, NAN);
  for (int i = 0; i < 3; ++i) {
    check(is(results.value[i], NAN) && is(results.slope[i], NAN),
          "%s: a NaN epsilon does not give NaN", Stored<S>::kName);
  }
}

// ---- A result depends on its element alone: not on its neighbours, its place, its alignment

constexpr int64_t kLongest = 5000;  // of several blocks of the sum
constexpr int64_t kColumns = 130, kRows = 9;
constexpr double kSpecial[] = {INFINITY, -12.5, 3e38, 0.0, -INFINITY, 1e-40, 19.5, -3e38};

/// Arguments, and the results of a call for each element alone.
template <class S>
struct Elements {
  std::vector<S> x, grad_output;
  Real<S> epsilon = -0.73f;
  std::vector<S> value, grad_input;
  // The first of them once more, as a matrix with an epsilon for each column.
  std::vector<Real<S>> epsilons;
  std::vector<S> row_value, row_grad_input;

  Elements() {
    std::mt19937 random;
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < kLongest; ++i) {
      // Stretches of common numbers alone, and stretches with others among them.
      const bool is_special = i / 40 % 2 && i % 8 == 7;
      x.push_back(
          rounded<S>(is_special ? kSpecial[i / 8 % std::size(kSpecial)] : 2 * normal(random)));
      grad_output.push_back(rounded<S>(normal(random)));
      add(kernels<S>(), i, epsilon, value, grad_input);
    }
    for (int64_t i = 0; i < kColumns; ++i) epsilons.push_back(normal(random));
    const auto one_of_many = plain_kernels<S>(instruction_set(), false);
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      add(one_of_many, i, epsilons[i % kColumns], row_value, row_grad_input);
    }
  }

  void add(const PlainKernels& k, int64_t i, Real<S> e, std::vector<S>& values,
           std::vector<S>& grads) const {
    S result;
    k.forward(&x[i], &e, &result, 1, false);
    values.push_back(result);
    k.backward(&grad_output[i], &x[i], &e, &result, nullptr, 1, false);
    grads.push_back(result);
  }
};

/// Room for rows of elements, the first one `offset` elements behind the start of a cache line.
/// What lies between the rows and around them holds a pattern.
template <class S>
class Room {
 public:
  static constexpr int kOffsets = 64 / sizeof(S);

  Room(int64_t rows, int64_t columns, int64_t stride, int offset)
      : rows_(rows), columns_(columns), stride_(stride), offset_(offset % kOffsets) {
    const int64_t bytes = (offset_ + rows * stride) * sizeof(S);
    lines_.resize(bytes / sizeof(Line) + 2);
    std::memset(lines_.data(), 0xa5, lines_.size() * sizeof(Line));
  }

  S* data() { return reinterpret_cast<S*>(lines_.data()) + offset_; }

  Room& fill(const std::vector<S>& elements, int64_t stride) {
    for (int64_t row = 0; row < rows_; ++row) {
      std::copy_n(elements.data() + row * stride, columns_, data() + row * stride_);
    }
    return *this;
  }

  /// Whether the rows hold the bits of these elements, and all the rest the pattern.
  bool holds(const std::vector<S>& elements, int64_t stride) const {
    Room expected(rows_, columns_, stride_, offset_);
    expected.fill(elements, stride);
    return std::memcmp(lines_.data(), expected.lines_.data(), lines_.size() * sizeof(Line)) == 0;
  }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  int64_t rows_, columns_, stride_;
  int offset_;
  std::vector<Line> lines_;
};

/// The plain kernels on the first `numel` elements; returns the sum.
template <class S>
double check_plain(const Elements<S>& elements, int64_t numel, int offset) {
  const auto k = kernels<S>();
  const auto room = [&](int at) { return Room<S>(1, numel, numel, at); };
  auto x = room(offset).fill(elements.x, 0);
  auto grad_output = room(3 * offset + 1).fill(elements.grad_output, 0);
  const auto* epsilon = &elements.epsilon;
  const auto holds = [&](const Room<S>& results, const std::vector<S>& expected, const char* what) {
    check(results.holds(expected, 0), "%s: %s, %d elements at offset %d", Stored<S>::kName, what,
          int(numel), offset);
  };

  double sum = NAN, other_sum = NAN;
  k.backward(grad_output.data(), x.data(), epsilon, nullptr, &sum, numel, false);
  for (const bool stream : {false, true}) {
    // Results at any alignment, and at the one that streaming needs.
    for (const int at : {5 * offset + 2, 0}) {
      auto results = room(at);
      k.forward(x.data(), epsilon, results.data(), numel, stream);
      holds(results, elements.value, stream ? "forward, streaming" : "forward");
      results = room(at);
      k.backward(grad_output.data(), x.data(), epsilon, results.data(), &other_sum, numel, stream);
      holds(results, elements.grad_input, stream ? "backward, streaming" : "backward");
      check(same_bits(sum, other_sum), "%s: the sum of %d elements changes with grad_input",
            Stored<S>::kName, int(numel));
      results = room(at);
      k.backward(grad_output.data(), x.data(), epsilon, results.data(), nullptr, numel, stream);
      holds(results, elements.grad_input, "backward without sum");
    }
  }
  k.forward(x.data(), epsilon, x.data(), numel, false);
  holds(x, elements.value, "forward in place");
  return sum;
}

/// The row kernels on the first rows and columns of the matrix.
template <class S>
void check_rows(const Elements<S>& elements, const std::vector<double>& sums, int64_t rows,
                int64_t columns, int offset) {
  const auto k = kernels<S>();
  const int64_t stride = columns + offset % 4;
  const auto room = [&](int at) { return Room<S>(rows, columns, stride, at); };
  auto x = room(offset).fill(elements.x, kColumns);
  auto grad_output = room(3 * offset + 1).fill(elements.grad_output, kColumns);
  Room<Real<S>> epsilon(1, columns, columns, 7 * offset + 3);
  epsilon.fill(elements.epsilons, 0);
  const auto holds = [&](const auto& results, const auto& expected, const char* what) {
    check(results.holds(expected, kColumns), "%s: %s, %d rows of %d elements at offset %d",
          Stored<S>::kName, what, int(rows), int(columns), offset);
  };

  auto results = room(5 * offset + 2);
  k.forward_rows(x.data(), epsilon.data(), results.data(), rows, columns, stride);
  holds(results, elements.row_value, "forward_rows");
  for (const bool wanted : {false, true}) {
    Room<double> sum(1, columns, columns, offset);
    sum.fill(std::vector<double>(columns, 0), 0);
    results = room(5 * offset + 2);
    k.backward_rows(grad_output.data(), x.data(), epsilon.data(), wanted ? results.data() : nullptr,
                    sum.data(), rows, columns, stride);
    if (wanted) holds(results, elements.row_grad_input, "backward_rows");
    holds(sum, sums, "the sums of backward_rows");
  }
  results = room(5 * offset + 2);
  k.backward_rows(grad_output.data(), x.data(), epsilon.data(), results.data(), nullptr, rows,
                  columns, stride);
  holds(results, elements.row_grad_input, "backward_rows without sums");
  k.forward_rows(x.data(), epsilon.data(), x.data(), rows, columns, stride);
  holds(x, elements.row_value, "forward_rows in place");
}

/// The term that epsilon's gradient has of x[at], computed among the others. For those that are
/// NaN, which makes a NaN of every sum, and those that lack, `filler` stands.
template <class S>
double term(const std::vector<S>& x, int64_t at, Real<S> epsilon, double filler) {
  constexpr int64_t kTogether = 64;  // no kernel looks at more
  const int64_t begin = at / kTogether * kTogether;
  std::vector<S> all(kTogether, rounded<S>(filler)), grad_output(kTogether, rounded<S>(0));
  for (int64_t i = begin; i < std::min<int64_t>(begin + kTogether, x.size()); ++i) {
    if (!std::isnan(widen(x[i]))) all[i - begin] = x[i];
  }
  grad_output[at - begin] = rounded<S>(1);
  double sum;
  kernels<S>().backward(grad_output.data(), all.data(), &epsilon, nullptr, &sum, kTogether, false);
  return sum;
}

/// Where all of a vector is near 0 the kernels may take a shorter way. Neighbours that bar it, and
/// NaN, which no comparison notices, change no bit, in whichever lane of which vector they are.
template <class S>
void test_neighbours(const Oracle<S>& oracle) {
  std::vector<S> x = {rounded<S>(INFINITY), rounded<S>(-INFINITY)};
  for (size_t i = 0; i < oracle.x.size(); i += 61) x.push_back(oracle.x[i]);
  const int64_t numel = x.size();
  for (const auto epsilon : epsilons<S>()) {
    const Results<S> alike(kernels<S>(), x, epsilon);
    std::vector<double> terms;
    for (const S number : x) terms.push_back(term(std::vector{number}, 0, epsilon, 0));
    // Stretches of elements take turns with as many neighbours, which are first or last.
    for (const int stretch : {1, 4, 8, 16}) {
      for (const bool last : {false, true}) {
        for (const double neighbour : {INFINITY, NAN}) {
          const auto place = [&](int64_t i) { return i + (i / stretch + !last) * stretch; };
          std::vector<S> mixed(place(numel) + 2 * stretch, rounded<S>(neighbour));
          for (int64_t i = 0; i < numel; ++i) mixed[place(i)] = x[i];
          const Results<S> results(kernels<S>(), mixed, epsilon);
          for (int64_t i = 0; i < numel; ++i) {
            // Which NaN comes out, IEEE 754 leaves to the compiler's order of operands.
            const auto same = [&](const std::vector<S>& a, const std::vector<S>& b) {
              return std::memcmp(&a[i], &b[place(i)], sizeof(S)) == 0 ||
                     (std::isnan(widen(a[i])) && std::isnan(widen(b[place(i)])));
            };
            check(same(alike.value, results.value) && same(alike.slope, results.slope) &&
                      same(alike.epsilon_slope, results.epsilon_slope),
                  "%s, epsilon %g: the results at %.17g change among %g", Stored<S>::kName,
                  double(epsilon), double(widen(x[i])), neighbour);
            const double alone = terms[i], among = term(mixed, place(i), epsilon, INFINITY);
            check(alone == among, "%s, epsilon %g: the term of the sum at %.17g changes among %g",
                  Stored<S>::kName, double(epsilon), double(widen(x[i])), neighbour);
          }
        }
      }
    }
  }
}

template <class S>
void test_independence() {
  const Elements<S> elements;
  const auto check_sums = [](double sum, double first_sum, int64_t numel) {
    check(same_bits(sum, first_sum), "%s: the sum of %d elements changes with their alignment",
          Stored<S>::kName, int(numel));
  };
  for (int64_t numel = 0; numel <= kColumns; ++numel) {
    const double sum = check_plain(elements, numel, 0);
    for (int offset = 1; offset < Room<S>::kOffsets; ++offset) {
      check_sums(check_plain(elements, numel, offset), sum, numel);
    }
  }
  check_sums(check_plain(elements, kLongest, 3), check_plain(elements, kLongest, 0), kLongest);

  for (const int64_t rows : {int64_t{1}, int64_t{3}, kRows}) {
    std::vector<double> sums(kColumns);  // of each column alone
    for (int64_t i = 0; i < kColumns; ++i) {
      kernels<S>().backward_rows(&elements.grad_output[i], &elements.x[i], &elements.epsilons[i],
                                 nullptr, &sums[i], rows, 1, kColumns);
    }
    for (int64_t columns = 0; columns <= kColumns; ++columns) {
      for (int offset = 0; offset < Room<S>::kOffsets; ++offset) {
        check_rows(elements, sums, rows, columns, offset);
      }
    }
  }
}

/// A page between two that must not be touched: reading or writing past its ends is a crash.
class FencedPage {
 public:
  FencedPage() {
    pages_ =
        static_cast<char*>(mmap(nullptr, 3 * kSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages_ == MAP_FAILED || mprotect(pages_ + kSize, kSize, PROT_READ | PROT_WRITE) != 0) {
      throw std::runtime_error("no memory for a fenced page");
    }
  }
  FencedPage(const FencedPage&) = delete;
  ~FencedPage() { munmap(pages_, 3 * kSize); }

  char* at_start() { return pages_ + kSize; }
  char* at_end(int64_t bytes) { return pages_ + 2 * kSize - bytes; }

 private:
  const int64_t kSize = sysconf(_SC_PAGESIZE);
  char* pages_;
};

template <class S>
void test_bounds() {
  const auto k = kernels<S>();
  FencedPage inputs, grads, outputs, epsilons, sums;
  for (int64_t numel = 0; numel <= kColumns; ++numel) {
    for (const bool start : {true, false}) {
      const auto in = [&](FencedPage& page, int64_t size) {
        return start ? page.at_start() : page.at_end(numel * size);
      };
      char *x = in(inputs, sizeof(S)), *g = in(grads, sizeof(S)), *y = in(outputs, sizeof(S));
      char* epsilon = in(epsilons, sizeof(Real<S>));
      auto* sum = reinterpret_cast<double*>(in(sums, sizeof(double)));
      const Real<S> one = 1;
      double total;
      k.forward(x, &one, y, numel, false);
      k.forward_rows(x, epsilon, y, 1, numel, numel);
      k.backward(g, x, &one, y, &total, numel, false);
      k.backward_rows(g, x, epsilon, y, sum, 1, numel, numel);
    }
  }
}

// ---- Sums

template <class S>
void test_sums() {
  const double bound = kIs16Bit<S> ? 1e-5 : sizeof(S) == 4 ? 1e-6 : 1e-14;
  std::mt19937 random;
  std::normal_distribution<double> normal;
  const Real<S> epsilon = 0.01f;
  const int64_t columns = 7;
  for (const int64_t numel : {0, 7, 1022, 1029, 70000}) {
    Oracle<S> oracle;
    std::vector<S> grad_output;
    for (int64_t i = 0; i < numel; ++i) {
      oracle.add(rounded<S>(2 * normal(random)));
      grad_output.push_back(rounded<S>(normal(random)));
    }
    Wide<S> exact[columns] = {}, size[columns] = {}, exact_total = 0, total_size = 0;
    for (int64_t i = 0; i < numel; ++i) {
      const Wide<S> term = widen(grad_output[i]) * oracle.bump[i];
      exact[i % columns] += term;
      size[i % columns] += std::abs(term);
      exact_total += term;
      total_size += std::abs(term);
    }
    double total;
    kernels<S>().backward(grad_output.data(), oracle.x.data(), &epsilon, nullptr, &total, numel,
                          false);
    check(std::abs(total - exact_total) <= bound * total_size,
          "%s: the sum of %d elements is %.17g, exact is %.17g", Stored<S>::kName, int(numel),
          total, double(exact_total));

    const std::vector<Real<S>> epsilons(columns, epsilon);
    std::vector<double> sums(columns, 1);  // are added to
    kernels<S>().backward_rows(grad_output.data(), oracle.x.data(), epsilons.data(), nullptr,
                               sums.data(), numel / columns, columns, columns);
    for (int64_t i = 0; i < columns; ++i) {
      check(std::abs(sums[i] - (1 + exact[i])) <= bound * (1 + size[i]),
            "%s: the sum of column %d in %d rows is %.17g, exact is %.17g", Stored<S>::kName,
            int(i), int(numel / columns), sums[i], double(1 + exact[i]));
    }
  }
}

// ---- The other forms

/// Another form of the activation goes the way that the plain one goes; what differs is tried: each
/// element's results are those it has alone, the gradients come one by one as together, and nothing
/// is read or written past an end.
template <class S>
void test_form(Activation activation, const char* name, int count_of_inputs) {
  const auto& k = instruction_set().kernels(activation)[static_cast<int>(Stored<S>::kStorage)];
  const Elements<S> elements;
  const Real<S> location = Real<S>(0.4), scale = Real<S>(1.7);
  const void* const parameter[] = {&elements.epsilon, &location, &scale};
  FencedPage xs, ups, grads, outputs, grad_xs, grad_ups;
  for (int64_t numel = 1; numel <= kColumns; ++numel) {
    for (const bool start : {true, false}) {
      const auto in = [&](FencedPage& page) {
        return reinterpret_cast<S*>(start ? page.at_start() : page.at_end(numel * sizeof(S)));
      };
      S *x = in(xs), *up = in(ups), *g = in(grads), *y = in(outputs);
      for (int64_t i = 0; i < numel; ++i) {
        x[i] = elements.x[i];
        up[i] = elements.grad_output[(i + 1) % numel];
        g[i] = elements.grad_output[i];
      }
      const void* const inputs[] = {x, up};
      void* const wanted[] = {in(grad_xs), in(grad_ups)};
      double sum, sum_alone;
      k.forward(inputs, parameter, y, numel, false, only);
      k.backward(g, inputs, parameter, wanted, &sum, numel, false, only);
      void* const none[] = {nullptr, nullptr};
      k.backward(g, inputs, parameter, none, &sum_alone, numel, false, only);
      check(same_bits(sum, sum_alone), "%s, %s: the sum of %d elements changes with the others",
            Stored<S>::kName, name, int(numel));
      for (int64_t i = 0; i < numel; ++i) {
        const void* const one[] = {x + i, up + i};
        const auto same = [&](const S& alone, const void* all) {
          return std::memcmp(&alone, static_cast<const S*>(all) + i, sizeof(S)) == 0;
        };
        S value;
        k.forward(one, parameter, &value, 1, false, only);
        bool right = same(value, y);
        for (int input = 0; input < count_of_inputs; ++input) {
          S grad;
          void* alone[] = {nullptr, nullptr};
          alone[input] = &grad;
          k.backward(g + i, one, parameter, alone, nullptr, 1, false, only);
          right = right && same(grad, wanted[input]);
        }
        check(right, "%s, %s: element %d of %d is not what it is alone", Stored<S>::kName, name,
              int(i), int(numel));
      }
    }
  }
}

/// Every form gives what it gives in scalar code, but for rounding. (The Python tests hold it to an
/// oracle, on the instruction sets that the processor has.)
template <class S>
void test_agreement(Activation activation, const char* name, std::vector<const void*> parameter,
                    double size_of_terms = 1) {
  const auto storage = static_cast<int>(Stored<S>::kStorage);
  const auto& k = instruction_set().kernels(activation)[storage];
  const auto& scalar = kernels_scalar(activation)[storage];
  const Elements<S> elements;
  const std::vector<S> up(elements.grad_output.rbegin(), elements.grad_output.rend());
  const void* const inputs[] = {elements.x.data(), up.data()};
  const auto agree = [&](double a, double b, double size, const char* what) {
    const double bound = std::ldexp(4, -Stored<S>::kFractionBits) * (size_of_terms + size);
    check(a == b || (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= bound,
          "%s, %s: %s is %.9g, and %.9g in scalar code", Stored<S>::kName, name, what, a, b);
  };

  std::vector<S> values[2], grads[2], grads_of_up[2];
  double sums[2] = {0, 0};
  for (const int i : {0, 1}) {
    const auto& kernels = i ? scalar : k;
    for (auto* results : {values, grads, grads_of_up}) results[i].resize(kLongest);
    kernels.forward(inputs, parameter.data(), values[i].data(), kLongest, false, only);
    void* const wanted[] = {grads[i].data(), grads_of_up[i].data()};
    double* const sum = activation == Activation::kTabulated ? nullptr : &sums[i];
    kernels.backward(elements.grad_output.data(), inputs, parameter.data(), wanted, sum, kLongest,
                     false, only);
  }
  for (int64_t i = 0; i < kLongest; ++i) {
    for (auto* results : {values, grads, grads_of_up}) {
      if (results == grads_of_up && activation != Activation::kGated) continue;
      const double expected = widen(results[1][i]);
      agree(widen(results[0][i]), expected, 8 * std::abs(expected), "a result");
    }
  }
  agree(sums[0], sums[1], kLongest, "the sum");
}

template <class S>
void test_forms() {
  const Real<S> epsilon = Real<S>(-0.73), location = Real<S>(0.4), scale = Real<S>(1.7);
  test_form<S>(Activation::kGated, "gated", 2);
  test_agreement<S>(Activation::kGated, "gated", {&epsilon});
  test_form<S>(Activation::kPlaced, "placed", 1);
  test_agreement<S>(Activation::kPlaced, "placed", {&epsilon, &location, &scale});
  std::mt19937 random;
  std::normal_distribution<double> normal;
  for (const int intervals : {1, 2, 15, 16, 17, 31, 32, 33, 255}) {
    // From -5 to 7; then the coefficients of each interval's cubic (tabulated.h).
    std::vector<Real<S>> table = {-5, 7, Real<S>(intervals / 12.0), Real<S>(intervals)};
    for (int i = 0; i < 4 * intervals; ++i) table.push_back(Real<S>(normal(random) / intervals));
    // A position among so many intervals is rounded to 2^-24 of their number.
    test_agreement<S>(Activation::kTabulated, "table", {table.data()}, 1 + intervals / 8.0);
  }
}

template <class S>
void test() {
  const auto oracle = sample<S>();
  for (const bool given : {true, false}) {
    only = given;
    std::printf("epsilon is %s\n", only ? "the tensor's only one" : "one of many");
    test_accuracy(oracle);
    test_limits<S>();
    test_neighbours(oracle);
    test_independence<S>();
    test_bounds<S>();
    test_sums<S>();
    test_forms<S>();
  }
}

}  // namespace
}  // namespace crrelu

int main() {
  using namespace crrelu;
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a crash shall leave what was printed
  try {
    std::printf("instruction set %s\n", instruction_set().name);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  test<float>();
  test<double>();
  test<BFloat16>();
  test<Half>();
  std::printf("%d checks failed\n", failures);
  return failures > 0;
}
