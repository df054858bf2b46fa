// Tables of 2^(j/k) for the vector vocabularies, as bits, and of what rounding took from them.
//
// An entry's bits have j moved to just below the exponent's place taken off: then adding a whole
// number of k-ths to an entry, moved there, gives 2^n * 2^(j/k) in one integer addition, n and j
// together.
#pragma once

#include <cstdint>

namespace crrelu {
namespace {

template <class Entry, int kEntries>
struct alignas(64) Table {
  Entry entries[kEntries];
};

/// `kEntries` of `values`, evenly spaced, each with its index, moved left by `kShift`, taken off.
template <class Bits, int kEntries, int kShift, class Real, int kValues>
constexpr Table<Bits, kEntries> table(const Real (&values)[kValues]) {
  Table<Bits, kEntries> result{};
  for (int j = 0; j < kEntries; ++j) {
    result.entries[j] =
        __builtin_bit_cast(Bits, values[j * (kValues / kEntries)]) - (Bits(j) << kShift);
  }
  return result;
}

/// `kEntries` of `values`, evenly spaced, less `offset`.
template <int kEntries, class Real, int kValues>
constexpr Table<Real, kEntries> table_less(const Real (&values)[kValues], Real offset) {
  Table<Real, kEntries> result{};
  for (int j = 0; j < kEntries; ++j) result.entries[j] = values[j * (kValues / kEntries)] - offset;
  return result;
}

// Floats lose -1.02 * 2^-28 of 2 ln 2 by rounding, so 2^n * exp(-r/2) lacks a factor 1 + n * 2^-29.
// The sum of n and the shifter, with an exponent less by 29, is that n * 2^-29 but for a constant:
// the tables of what was lost have it taken off, and no multiplication is needed.

/// 2^(j/16), and what rounding took from it, as a part of what it left.
constexpr float kPowers[16] = {0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f,
                               0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
                               0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
                               0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f};
constexpr float kPowersLow[16] = {0,
                                  0x1.8d96d4p-25f,
                                  -0x1.9c0c22p-27f,
                                  0x1.964904p-25f,
                                  0x1.125002p-25f,
                                  0x1.370be4p-25f,
                                  -0x1.0a3550p-25f,
                                  -0x1.00d8acp-27f,
                                  0x1.26055cp-26f,
                                  -0x1.05cb44p-25f,
                                  0x1.67a1cap-28f,
                                  0x1.a3b5e4p-28f,
                                  -0x1.f9c304p-27f,
                                  -0x1.6961b4p-28f,
                                  -0x1.a5217cp-28f,
                                  0x1.61428ep-28f};
constexpr double kPowers64[16] = {
    0x1.0000000000000p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0};
constexpr double kPowersLow64[16] = {0,
                                     0x1.79aa65d837b6dp-54,
                                     -0x1.01b15eaa59348p-55,
                                     0x1.68efde3a8a894p-54,
                                     0x1.34d754db0abb6p-55,
                                     0x1.59f48a72a4c6dp-55,
                                     0x1.690cebb7aafb0p-56,
                                     0x1.063e1e21c5409p-54,
                                     -0x1.3b3efbf5e2228p-54,
                                     -0x1.b32dcb94da51dp-56,
                                     0x1.db72fc1f0eab4p-55,
                                     0x1.1affc2b91ce27p-56,
                                     0x1.c1a7792cb3387p-55,
                                     0x1.36eae30af0cb3p-56,
                                     0x1.4a385a63d07a7p-56,
                                     -0x1.ff7128fd391f0p-55};

}  // namespace
}  // namespace crrelu
