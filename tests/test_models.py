"""CRReLU in models that others wrote: replacement, names, parameter groups, precision."""

# mypy: disable-error-code="operator, union-attr"

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from crrelu_ext import (
    CRReLU,
    DynamicActivation,
    DynamicCRReLU,
    crrelu,
    crrelu_glu,
    parameter_groups,
    register,
    replace_activation,
)


def shared() -> nn.Module:
    """A network that uses one GELU in two places, has another one deep inside, and a hole."""
    gelu = nn.GELU()
    model = nn.Sequential(
        nn.Linear(4, 8),
        gelu,
        nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU("tanh"))),
        gelu,
        nn.Linear(8, 2),
    )
    model[0].register_module("hole", None)
    return model


def test_replace_activation() -> None:
    model = shared().eval()
    changed = replace_activation(model)
    assert list(changed) == ["1", "3", "2.1.0"]
    assert changed["1"] is changed["3"]
    assert changed["1"] is not changed["2.1.0"]
    assert all(model.get_submodule(name) is module for name, module in changed.items())
    assert not any(isinstance(module, nn.GELU) for module in model.modules())
    assert not any(module.training for module in changed.values())
    assert len(list(model.parameters())) == 6 + 2
    model(torch.randn(3, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert replace_activation(model) == {}


def test_replace_activation_by_another() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.SiLU())
    made = replace_activation(model, (nn.ReLU, nn.SiLU), lambda: CRReLU(8, -0.2, channel_dim=-1))
    assert list(made) == ["1", "3"]
    assert [p.shape for n, p in model.named_parameters() if n.endswith("epsilon")] == [(8,), (8,)]


def test_replaced_ones_go_where_the_model_is() -> None:
    model = nn.Sequential(nn.Linear(4, 8, device="meta", dtype=torch.bfloat16), nn.GELU())
    replace_activation(model)
    assert model[1].epsilon.device.type == "meta"
    assert model[1].epsilon.dtype == torch.float32  # the type that learns, beside 16-bit input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1,), TypeError, "model has type int"),
        ((nn.Sequential(nn.GELU()), "gelu"), TypeError, "old is 'gelu'"),
        ((nn.Sequential(nn.GELU()), ()), TypeError, r"old is \(\)"),
        ((nn.Sequential(nn.GELU()), int), TypeError, "old is <class 'int'>"),
        ((nn.GELU(),), ValueError, "model itself has type GELU"),
        ((nn.Sequential(nn.GELU()), nn.GELU, CRReLU()), TypeError, "new has type CRReLU; "),
        ((nn.Sequential(nn.GELU()), nn.GELU, lambda: 3), TypeError, "new's result has type int"),
        ((nn.Sequential(nn.GELU()), nn.GELU, 3), TypeError, "new has type int"),
    ],
)
def test_bad_replacement(arguments: Any, error: type[Exception], message: str) -> None:
    before = list(arguments[0].modules()) if isinstance(arguments[0], nn.Module) else []
    with pytest.raises(error, match=message):
        replace_activation(*arguments)
    if before:
        assert list(arguments[0].modules()) == before


def test_bad_parameter_groups() -> None:
    with pytest.raises(TypeError, match="model has type list; allowed is"):
        parameter_groups([torch.ones(3)], 0.05)  # type: ignore[arg-type]
    for weight_decay in (-1, "x", math.nan):
        with pytest.raises(ValueError, match=f"weight_decay is {weight_decay!r}; allowed are 0"):
            parameter_groups(nn.Linear(2, 2), weight_decay)  # type: ignore[arg-type]


def test_parameter_groups() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), CRReLU(8), nn.Flatten(), nn.Linear(8, 2), CRReLU()
    )
    model[4].bias.requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[4].weight)]
    assert spared["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in spared["params"]] == [
        "0.bias",
        "1.weight",
        "1.bias",
        "2.epsilon",
        "5.epsilon",
    ]
    optimizer = torch.optim.AdamW([decayed, spared], lr=0.0 + 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = model[5].epsilon.item()
    optimizer.step()
    assert model[5].epsilon.item() == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_changed_model(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = shared()
    replace_activation(model, new=lambda: CRReLU(init=-0.5))
    other = copied(model)
    input = torch.randn(3, 4)
    assert torch.equal(other(input), model(input))
    other.load_state_dict(model.state_dict())


def training_step(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    value = loss(model)
    value.backward()
    optimizer.step()
    assert torch.isfinite(value)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter).all(), name
        if name.endswith("epsilon"):
            assert not torch.equal(parameter, before[name]), name


def test_registration_where_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert register() == []


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("by_name", [True, False])
def test_transformers(kind: str, by_name: bool) -> None:
    transformers = pytest.importorskip("transformers")
    assert "transformers" in register()
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=16,
            activation_function="crrelu" if by_name else "gelu_new", bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
        old: Any = type(transformers.activations.ACT2FN["gelu_new"])
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=64,
            vocab_size=64, max_position_embeddings=16, hidden_act="crrelu" if by_name else "silu",
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        old = type(transformers.activations.ACT2FN["silu"])
    if not by_name:
        assert len(replace_activation(model, old)) == 2
    assert sum(isinstance(module, CRReLU) for module in model.modules()) == 2
    tokens = torch.randint(64, (2, 8))
    training_step(model, lambda m: m(input_ids=tokens, labels=tokens).loss)


def small_gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=16,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def test_transformers_that_load_what_has_no_epsilon(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert register() == register()
    load = transformers.GPT2LMHeadModel.from_pretrained
    transformers.GPT2LMHeadModel(small_gpt2()).save_pretrained(tmp_path)
    model = load(tmp_path, activation_function="crrelu")
    epsilons = [p for name, p in model.named_parameters() if name.endswith("epsilon")]
    assert [epsilon.item() for epsilon in epsilons] == pytest.approx([0.01, 0.01])
    with torch.no_grad():
        for epsilon in epsilons:
            epsilon.fill_(0.5)
    model.save_pretrained(tmp_path)
    saved = dict(load(tmp_path).named_parameters())
    assert [saved[f"transformer.h.{i}.mlp.act.epsilon"].item() for i in (0, 1)] == [0.5, 0.5]


@pytest.mark.parametrize("kind", [DynamicActivation, DynamicCRReLU])
def test_transformers_that_load_dynamic_activations(
    kind: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    assert register()
    monkeypatch.setitem(transformers.activations.ACT2FN, "dynamic", kind)
    load = transformers.GPT2LMHeadModel.from_pretrained
    transformers.GPT2LMHeadModel(small_gpt2()).save_pretrained(tmp_path / "without")
    model = load(tmp_path / "without", activation_function="dynamic").train()
    act = model.transformer.h[0].mlp.act
    start = kind().state_dict()
    assert {name: value.tolist() for name, value in act.state_dict().items()} == {
        name: value.tolist() for name, value in start.items()
    }
    model(torch.arange(16)[None])
    assert act.histogram.counts.sum() > 0

    act.histogram.place.fill_(0.75)
    model.save_pretrained(tmp_path / "with")
    act = load(tmp_path / "with").train().transformer.h[0].mlp.act
    assert act.histogram.place.tolist() == [[0.75], [0.75]]
    assert act.histogram.counts.sum() == 0
    act(torch.randn(8))
    assert act.histogram.counts.sum() == 8


def test_a_layer_that_torch_would_fuse() -> None:
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, activation=nn.GELU(), batch_first=True
    )
    assert replace_activation(layer, nn.GELU, partial(CRReLU, init=3.0))
    x = torch.randn(2, 5, 16)
    expected = layer.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
@pytest.mark.parametrize("by_name", [True, False])
def test_timm(name: str, by_name: bool) -> None:
    pytest.importorskip("torchvision", exc_type=ImportError)
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"timm: {error}")
    assert "timm" in register()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 7])

    def loss(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    # ResNets else begin with blocks that give 0, and their activations with gradients of 0.
    options: Any = {"vit": {"img_size": 32}, "res": {"zero_init_last": False}}.get(name[:3], {})
    if by_name:
        model = timm.create_model(name, num_classes=10, act_layer="crrelu", **options)
    else:
        model = timm.create_model(name, num_classes=10, **options)
        training_step(copy.deepcopy(model), loss)
        assert replace_activation(model, (nn.GELU, nn.ReLU, timm.layers.GELU))
    assert any(isinstance(module, CRReLU) for module in model.modules())
    assert not any(isinstance(module, (nn.GELU, nn.ReLU)) for module in model.modules())
    training_step(model, loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype, device: str) -> None:
    """As F.gelu: whatever comes in goes out; the input's type is not changed."""
    linear, act = nn.Linear(8, 8, device=device), CRReLU(init=-0.3, device=device)
    x = torch.randn(4, 8, device=device)
    with torch.autocast(device, dtype):
        hidden = linear(x)
        assert act(hidden).dtype == nn.functional.gelu(hidden).dtype == dtype
        assert act(x).dtype == nn.functional.gelu(x).dtype == torch.float32
        glu = crrelu_glu(hidden, linear(x), act.epsilon)
        assert glu.dtype == dtype
        loss = act(hidden).float().square().sum() + glu.float().sum()
    loss.backward()
    assert act.epsilon.grad is not None
    assert act.epsilon.grad.dtype == torch.float32
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


def test_model_in_half_precision() -> None:
    """model.bfloat16() takes epsilon along, as it does every parameter; float32 stays possible."""
    model = nn.Sequential(nn.Linear(8, 8), CRReLU(init=0.01)).bfloat16()
    assert model[1].epsilon.dtype == torch.bfloat16
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    model(x).sum().backward()
    assert model[1].epsilon.grad.dtype == torch.bfloat16
    model[1].float()
    assert model(x).dtype == torch.bfloat16
    model.zero_grad()
    model(x).sum().backward()
    assert model[1].epsilon.grad.dtype == torch.float32


def test_grad_scaler(device: str) -> None:
    """A loss scaled up until it overflows: the step is left out and the scale lowered."""
    model = nn.Sequential(nn.Linear(8, 8), CRReLU(init=-0.3), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**8)
    x = torch.randn(4, 8, device=device)
    for scale, steps in ((1.0, True), (1e38, False)):
        before = model[1].epsilon.item()
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):
            loss = model(x).float().square().mean()
        scaler.scale(loss * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (model[1].epsilon.item() != before) == steps
    assert scaler.get_scale() < 2.0**8


def test_functions_take_a_parameter_like_a_tensor() -> None:
    epsilon = nn.Parameter(torch.tensor([0.3]))
    x = torch.randn(5)
    assert_close(crrelu(x, epsilon).detach(), crrelu(x, epsilon.detach()))


def test_devices_of_what_is_put_in() -> None:
    """That of a neighbour below the same module, else of the model."""

    def holder(*modules: nn.Module) -> nn.Sequential:
        return nn.Sequential(*modules)

    here, meta = nn.Linear(2, 2), partial(nn.Linear, 2, 2, device="meta")
    made = replace_activation(holder(here, holder(meta(), nn.GELU()), holder(nn.GELU())))
    assert {name: next(act.parameters()).is_meta for name, act in made.items()} == {
        "1.1": True,
        "2.0": False,
    }
    (only,) = replace_activation(holder(meta(), holder(nn.GELU()))).values()
    assert next(only.parameters()).is_meta


def test_new_is_called_once_for_what_stands_twice() -> None:
    gelu, made = nn.GELU(), list[nn.Module]()

    def new() -> nn.Module:
        made.append(CRReLU())
        return made[-1]

    replace_activation(nn.Sequential(nn.Linear(2, 2), gelu, gelu), new=new)
    assert len(made) == 1


def test_no_weight_decay_at_all() -> None:
    decayed, _ = parameter_groups(nn.Linear(2, 2), 0)
    assert decayed["weight_decay"] == 0
