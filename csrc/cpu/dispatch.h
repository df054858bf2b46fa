// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace crrelu {

struct InstructionSet {
  const char* name;
  bool (*supported)();
  const Kernels* (*kernels)(Activation activation);
};

/// Those of this build that this processor has, best first.
const std::vector<InstructionSet>& supported_instruction_sets();

/// The best supported one, or the one that the environment variable CRRELU_EXT_ISA names; read
/// once. Throws std::runtime_error if that name is unknown or unsupported.
const InstructionSet& instruction_set();

}  // namespace crrelu
