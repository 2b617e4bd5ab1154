"""The checksum of a model: every byte of what it computes with counts, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_hook.identity.tensors import checksum_of, tensors_of


class Model(torch.nn.Module):
    """Parameters of these names, and whatever else is set."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_every_byte_of_the_weights_counts(dtype: torch.dtype):
    values = torch.arange(7, dtype=torch.uint8).repeat(torch.empty((), dtype=dtype).element_size())
    if dtype == torch.bool:
        values %= 2
    sums = {checksum_of(Model(w=values.view(dtype)))}
    for at in range(len(values)):
        changed = values.clone()
        changed[at] ^= 1
        sums.add(checksum_of(Model(w=changed.view(dtype))))
    assert len(sums) == 1 + len(values)


def test_weights_are_told_apart_by_name_place_and_form():
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    square = torch.arange(9.0).view(3, 3)
    models = [
        Model(a=one, b=two),
        Model(a=two, b=one),
        Model(a=one, c=two),
        Model(a=one.flip(0), b=two),
        Model(a=one[None], b=two),
        Model(a=one, b=two.view(torch.int32)),
        Model(a=one),
        Model(a=square),
        Model(a=square.t()),
        Model(a=square.t().contiguous()),
        Model(a=torch.tensor([1.0, 2.0, 0.0])),
        Model(a=torch.zeros(0)),
    ]
    assert len({checksum_of(model) for model in models}) == len(models)
    assert checksum_of(Model(a=one.clone(), b=two.clone())) == checksum_of(models[0])


class Slotted:
    __slots__ = ("packed",)

    def __init__(self, packed: torch.Tensor) -> None:
        self.packed = packed


def kept(where: str, tensor: torch.Tensor) -> Model:
    """A model that keeps a tensor somewhere else than among its parameters."""
    model = Model(a=torch.ones(2))
    if where == "buffer":
        model.register_buffer("b", tensor)
    elif where == "buffer of no state":
        model.register_buffer("b", tensor, persistent=False)
    elif where == "attribute":
        model.b = tensor
    elif where == "list":
        model.b = [1, (tensor,), {"c": 2}]
    elif where == "object":
        model.quant_method = SimpleNamespace(kernel=SimpleNamespace(w13_weight=tensor, model=model))
    elif where == "closure":
        model.gemm = lambda x: x @ tensor
    elif where == "slot":
        model.kernel = Slotted(tensor)
    elif where == "parameter":
        model.a.quant_state = {0: SimpleNamespace(absmax=tensor)}
    elif where == "layer":
        model.layer = Model(b=tensor)
    else:
        raise ValueError(where)
    return model


@pytest.mark.parametrize(
    "where", ["buffer", "buffer of no state", "attribute", "list", "object", "slot", "parameter", "closure", "layer"]
)
def test_weights_are_found_wherever_a_layer_keeps_them(where: str):
    """Kernels of mixtures of experts keep repacked weights in objects of their own, and delete the parameters."""
    one, other, none = kept(where, torch.ones(2)), kept(where, torch.zeros(2)), Model(a=torch.ones(2))
    assert len({checksum_of(model) for model in (one, other, none)}) == 3
    assert checksum_of(kept(where, torch.ones(2))) == checksum_of(one)


@pytest.mark.parametrize(
    "name",
    [
        "kv_cache",
        "lora_a_stacked",
        "topk_indices_buffer",
        "_inputs_embeds_buf",
        "workspace",
        "hidden_states",
        "cpu_linear",
    ],
)
def test_what_a_step_leaves_behind_is_no_weight(name: str):
    models = [Model(a=torch.ones(2)) for _ in range(3)]
    for model, value in zip(models, (None, torch.zeros(2), torch.rand(5)), strict=True):
        setattr(model, name, value)
        model.quant_method = SimpleNamespace(**{name: [value]})
    assert len({checksum_of(model) for model in models}) == 1
    registered = Model(a=torch.ones(2))
    registered.register_buffer(name, torch.ones(1))
    assert checksum_of(registered) != checksum_of(models[0]), "a registered buffer counts whatever its name"


def test_a_model_that_refers_to_itself():
    model = Model(a=torch.ones(2))
    holder: dict[str, Any] = {"model": model}
    holder["self"] = holder
    model.holder = holder
    assert set(tensors_of(model)) == {"a"}


def test_a_tensor_in_several_places_is_read_once():
    model = Model(a=torch.ones(2))
    model.same = model.a
    model.quant_method = SimpleNamespace(weight=model.a)
    assert list(tensors_of(model)) == ["a"]


def hidden(kind: str) -> Model:
    if kind == "empty":
        return Model(weight=torch.empty(0))
    if kind == "meta":
        return Model(w=torch.empty(3, device="meta"))
    return Model(w=torch.eye(3).to_sparse())


@pytest.mark.parametrize("kind", ["empty", "meta", "sparse"])
def test_hidden_weights_have_no_checksum(kind: str):
    assert checksum_of(hidden(kind)) == ""
