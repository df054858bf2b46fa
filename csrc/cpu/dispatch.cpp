#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace crrelu {
namespace {

const InstructionSet kInstructionSets[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     kernels_avx512},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     kernels_avx2},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, kernels_neon},
#endif
    {"scalar", [] { return true; }, kernels_scalar},
};

std::vector<InstructionSet> supported() {
  std::vector<InstructionSet> found;
  for (const auto& isa : kInstructionSets) {
    if (isa.supported()) found.push_back(isa);
  }
  return found;
}

InstructionSet choose() {
  const char* wanted = std::getenv("CRRELU_EXT_ISA");
  if (!wanted || !*wanted) return supported_instruction_sets().front();
  std::string names;
  for (const auto& isa : supported_instruction_sets()) {
    if (wanted == std::string(isa.name)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa.name);
  }
  bool known = false;
  for (const auto& isa : kInstructionSets) known = known || wanted == std::string(isa.name);
  throw std::runtime_error(
      "CRRELU_EXT_ISA is \"" + std::string(wanted) + "\", which " +
      (known ? "this processor does not support" : "is not an instruction set of this build") +
      "; allowed here: " + names);
}

}  // namespace

const std::vector<InstructionSet>& supported_instruction_sets() {
  static const std::vector<InstructionSet> found = supported();
  return found;
}

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace crrelu
