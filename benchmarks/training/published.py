"""What the authors' public logs say: one seed each, the best epoch's accuracy in percent.

They are rebuttal runs, not the paper's own tables.
"""

ACTIVATIONS = ("crrelu", "gelu", "prelu", "silu", "mish", "elu")

_LOGS: dict[tuple[str, str], tuple[float, ...]] = {
    ("cifar10", "vit_tiny"): (88.72, 84.68, 89.25, 80.51, 81.01, 76.72),
    ("cifar10", "deit_tiny"): (87.74, 86.50, 87.49, 82.21, 82.75, 78.27),
    ("cifar10", "deit_base"): (90.16, 90.52, 90.21, 90.53, 90.53, 87.77),
    ("cifar10", "resnet18"): (94.57, 94.78, 94.41, 94.87, 94.68, 93.29),
    ("cifar10", "convnext_tiny"): (84.54, 81.54, 84.11, 80.69, 80.65, 74.52),
    ("cifar10", "convnext_large"): (87.24, 85.50, 86.84, 84.75, 84.77, 80.35),
    ("cifar100", "vit_tiny"): (63.58, 58.50, 63.87, 51.41, 51.68, 47.41),
    ("cifar100", "deit_tiny"): (64.61, 65.43, 64.74, 62.07, 62.52, 55.36),
    ("cifar100", "deit_base"): (67.11, 65.91, 65.57, 65.76, 66.41, 64.96),
    ("cifar100", "resnet18"): (74.95, 75.02, 73.56, 75.34, 75.39, 74.48),
    ("cifar100", "convnext_tiny"): (58.15, 58.34, 56.25, 56.40, 56.55, 49.60),
    ("cifar100", "convnext_large"): (60.06, 58.82, 60.74, 56.84, 57.14, 56.94),
}
_RELU = {("cifar10", "resnet18"): 94.49, ("cifar100", "resnet18"): 74.95}


def accuracy(dataset: str, model: str, activation: str) -> float | None:
    """The logged figure, in percent; ``model`` is timm's name. None where there is no log."""
    name = (dataset, model.partition(".")[0].removesuffix("_patch16_224"))
    if activation == "relu":
        return _RELU.get(name)
    return dict(zip(ACTIVATIONS, _LOGS.get(name, ()), strict=False)).get(activation)
