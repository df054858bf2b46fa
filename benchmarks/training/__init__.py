"""Real training on real images: CRReLU, GELU and ReLU in the same small vision transformer."""
