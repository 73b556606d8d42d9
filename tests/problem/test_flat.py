"""The flat vector and the module's parameters: views, ties, frozen and odd parameters, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from apts_mpi.problem.flat import FlatModel, random_layers

CPU = torch.device("cpu")


def flat(module: nn.Module, dtype: torch.dtype = torch.float64) -> FlatModel:
    return FlatModel(module, dtype, CPU)


def gradient(model: FlatModel, theta: Tensor, inputs: Tensor) -> Tensor:
    """Of the sum of squared outputs, through the flat vector."""
    grad = torch.zeros_like(theta)
    model.point(theta, grad)
    model.module(inputs).square().sum().backward()
    return grad


def difference_quotient(model: FlatModel, theta: Tensor, inputs: Tensor) -> Tensor:
    def value(vector: Tensor) -> float:
        model.point(vector, None)
        with torch.no_grad():
            return float(model.module(inputs).square().sum())

    eps, found = 1e-6, []
    for i in range(theta.numel()):
        up, down = theta.clone(), theta.clone()
        up[i] += eps
        down[i] -= eps
        found.append((value(up) - value(down)) / (2 * eps))
    return torch.tensor(found, dtype=theta.dtype)


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Odd(nn.Module):
    """Parameters that are transposed, strided, of mixed dtypes, unused and frozen."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        numbers = torch.arange(12.0) / 10 + shift
        self.transposed = nn.Parameter(numbers.view(3, 4).t())
        self.strided = nn.Parameter(numbers.double()[::4])
        self.coarse = nn.Parameter(torch.tensor([0.25, 0.5, -1.0], dtype=torch.float16))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.full((3,), 7.0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.transposed) * self.strided + self.coarse * self.frozen


def test_views_share_memory_and_carry_names_and_shapes() -> None:
    model = flat(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    theta = torch.arange(11.0, dtype=torch.float64)
    views = model.views(theta)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        "0.weight": (2, 3), "0.bias": (2,), "1.weight": (1, 2), "1.bias": (1,),
    }  # fmt: skip
    views["1.weight"][0, 1] = -5.0
    assert theta.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, -5, 10]
    assert [(slot.offset, slot.size) for slot in model.slots] == [(0, 6), (6, 2), (8, 2), (10, 1)]


def test_initial_is_the_modules_parameters_in_order_and_a_copy() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    wanted = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    model = flat(module)
    theta = model.initial()
    assert torch.equal(theta, wanted) and theta.is_contiguous()
    theta.zero_()
    assert torch.equal(model.initial(), wanted)


def test_point_copies_nothing_and_adds_to_the_gradient() -> None:
    model = flat(nn.Linear(3, 2))
    theta, grad, x = torch.randn(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    model.point(theta, grad)
    parameters = list(model.module.parameters())
    assert parameters[0].data_ptr() == theta.data_ptr() and parameters[1].data_ptr() == theta[6:].data_ptr()
    model.module(x).sum().backward()
    assert torch.allclose(grad, 1 + torch.cat([x.sum(0), x.sum(0), torch.full((2,), 4.0)]), rtol=1e-14)
    assert parameters[0].grad is not None and parameters[0].grad.data_ptr() == grad.data_ptr()


@pytest.mark.fault(20)
def test_tied_weights_are_once_in_the_vector_with_the_gradient_of_both_uses() -> None:
    model = flat(Tied())
    assert model.n_params == 9 + 3 + 3
    assert [slot.name for slot in model.slots] == ["first.weight", "first.bias", "second.bias"]
    theta, x = torch.randn(15, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(gradient(model, theta, x), difference_quotient(model, theta, x), rtol=1e-6, atol=1e-7)
    model.restore(theta)
    assert isinstance(model.module, Tied) and model.module.first.weight is model.module.second.weight


@pytest.mark.fault(22)
def test_odd_parameters_lie_in_the_vector_in_logical_order() -> None:
    """Transposed, strided, of mixed dtypes."""
    module = Odd()
    wanted = [module.transposed.detach().double().reshape(-1), module.strided.detach().double(), module.coarse.detach().double()]
    model = flat(module)
    theta, x = model.initial(), torch.randn(5, 4, dtype=torch.float64)
    assert theta.dtype == torch.float64
    assert torch.equal(theta, torch.cat([*wanted, torch.ones(2)]))
    assert torch.allclose(gradient(model, theta, x), difference_quotient(model, theta, x), rtol=1e-6, atol=1e-7)


@pytest.mark.fault(21)
def test_frozen_stay_and_unused_have_no_gradient() -> None:
    model = flat(Odd())
    theta = model.initial()
    grad = gradient(model, theta, torch.randn(5, 4, dtype=torch.float64))
    assert "frozen" not in model.views(theta) and model.n_params == 12 + 3 + 3 + 2
    assert model.views(grad)["unused"].tolist() == [0, 0]
    model.restore(theta + 1)
    assert model.module.frozen.tolist() == [7, 7, 7] and model.module.unused.tolist() == [2, 2]


def test_layout_speaks_of_names_shapes_and_dtype_not_of_values() -> None:
    """Equal on all ranks whatever the values, different as soon as the vector means something else."""
    frozen = Odd()
    frozen.unused.requires_grad_(False)
    assert flat(Odd()).layout == flat(Odd(shift=1.0)).layout
    others = [flat(frozen), flat(Odd(), torch.float32), flat(nn.Linear(4, 5)), flat(nn.Linear(5, 4)), flat(nn.Sequential(nn.Linear(4, 5)))]
    assert len({flat(Odd()).layout, *(model.layout for model in others)}) == 6


@pytest.mark.fault(23)
def test_one_parameter() -> None:
    model = flat(nn.Linear(1, 1, bias=False))
    theta = torch.tensor([3.0], dtype=torch.float64)
    assert gradient(model, theta, torch.tensor([[2.0]], dtype=torch.float64)).tolist() == [24.0]
    assert model.n_params == 1 and model.views(theta)["weight"].shape == (1, 1)


def test_restore_gives_the_module_parameters_of_its_own() -> None:
    model = flat(nn.Linear(3, 2))
    theta = torch.randn(8, dtype=torch.float64)
    kept = theta.clone()
    gradient(model, theta, torch.randn(4, 3, dtype=torch.float64))
    model.restore(theta)
    theta.fill_(0)
    assert torch.equal(nn.utils.parameters_to_vector(model.module.parameters()), kept)
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())
    assert len(copy.deepcopy(model.module).state_dict()) == 2


@pytest.mark.fault(19)
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.LazyBatchNorm1d()])
def test_batch_norm_is_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"layer 'body\.1' is a BatchNorm: .*use GroupNorm or LayerNorm"):
        flat(nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), layer)}))


@pytest.mark.fault(22)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_without_a_real_gradient_are_refused_by_name(dtype: torch.dtype) -> None:
    module = nn.Linear(2, 2)
    module.extra = nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=dtype.is_complex)
    with pytest.raises(ValueError, match=f"parameter 'extra' has dtype {dtype}"):
        flat(module)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_nothing_to_train(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        flat(module)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_first_nonfinite_parameter_is_named(bad: float) -> None:
    model = flat(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
    theta = torch.zeros(11, dtype=torch.float64)
    assert model.first_nonfinite(theta) is None
    theta[9] = bad
    assert model.first_nonfinite(theta) == "1.weight"


def test_random_layers() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Dropout(0.0), nn.Sequential(nn.Dropout2d(0.1)))
    assert random_layers(module) == ["1", "3.0"]


def test_fixed_sees_frozen_parameters_and_buffers_alone() -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        model[0].bias.requires_grad_(False)
        model.register_buffer("mask", torch.tensor(1.0))
        return model

    def found(model: nn.Module) -> str:
        return FlatModel(model, torch.float32, torch.device("cpu")).fixed

    changed = [made() for _ in range(4)]
    with torch.no_grad():
        changed[1][1].bias += 1  # trained: theta's business
        changed[2][0].bias += 1
        changed[3].mask += 1
    hashes = [found(model) for model in changed]
    assert hashes[0] == hashes[1] and len({hashes[0], *hashes[2:]}) == 3
