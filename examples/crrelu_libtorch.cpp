// CRReLU in a libtorch program: linked with the library crrelu_ops, which registers the operators
// with PyTorch's dispatcher. A module learns epsilon from examples of the formula.
#include <torch/torch.h>

#include <cmath>
#include <cstdio>

#include "operators.h"

/// max(0, x) + epsilon x exp(-x^2/2), with one epsilon to be learned.
struct CRReLU : torch::nn::Module {
  CRReLU() : epsilon(register_parameter("epsilon", torch::full({1}, 0.01))) {}

  torch::Tensor forward(const torch::Tensor& input) {
    return crrelu::crrelu_op().call(input, epsilon, /*channel_dim=*/1);
  }

  torch::Tensor epsilon;
};

int main() {
  torch::manual_seed(0);
  const double target_epsilon = -0.5;
  const auto x = torch::randn({10000});
  const auto target = torch::relu(x) + target_epsilon * x * torch::exp(-x * x / 2);

  CRReLU crrelu;
  torch::optim::SGD optimizer(crrelu.parameters(), /*lr=*/1.0);
  for (int step = 1; step <= 40; ++step) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(crrelu.forward(x), target);
    loss.backward();
    optimizer.step();
    if (step % 10 == 0) {
      std::printf("step %2d: loss %.2e, epsilon %+.6f\n", step, loss.item<double>(),
                  crrelu.epsilon.item<double>());
    }
  }

  // The derivative, too, is the formula's: [x > 0] + epsilon (1 - x^2) exp(-x^2/2).
  const auto point = torch::tensor({-2.0f, -0.5f, 0.0f, 0.5f, 2.0f}).requires_grad_();
  const auto value = crrelu.forward(point);
  value.sum().backward();
  double error = std::abs(crrelu.epsilon.item<double>() - target_epsilon);
  std::printf("      x       f(x)      f'(x)\n");
  for (int64_t i = 0; i < point.numel(); ++i) {
    const double at = point[i].item<double>(), bump = target_epsilon * std::exp(-at * at / 2);
    const double f = value[i].item<double>(), slope = point.grad()[i].item<double>();
    std::printf("%+7.2f  %+9.6f  %+9.6f\n", at, f, slope);
    error = std::max({error, std::abs(f - (std::fmax(at, 0) + at * bump)),
                      std::abs(slope - ((at > 0) + (1 - at * at) * bump))});
  }
  std::printf("largest error against the formula with epsilon %+.1f: %.1e\n", target_epsilon,
              error);
  return error < 1e-5 ? 0 : 1;
}
