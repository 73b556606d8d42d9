"""The network that solves Poisson's equation, against Hessians by autograd and against a known solution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from apts_mpi.config import ModelConfig
from apts_mpi.problem.losses import mse
from apts_mpi.problem.models import build_model
from apts_mpi.problem.poisson import Poisson, Tanh


def network(dimensions: int, widths: tuple[int, ...] = (7, 6), dtype: torch.dtype = torch.float64) -> Poisson:
    model = build_model(ModelConfig(name="poisson", widths=widths), (dimensions,), 1, seed=3).to(dtype)
    assert isinstance(model, Poisson)
    return model


def points(count: int, dimensions: int) -> Tensor:
    return torch.rand((count, dimensions), dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("widths", [(), (9,), (7, 6, 5)])
def test_the_laplacian_is_the_trace_of_the_hessian(dimensions: int, widths: tuple[int, ...]) -> None:
    model, x = network(dimensions, widths), points(11, dimensions)
    wanted = -vmap(lambda one: jacrev(grad(lambda p: model.solution(p[None])[0]))(one).trace())(x)
    with torch.no_grad():
        found = model(x)
    assert found.shape == (11,) and torch.allclose(found, wanted, rtol=1e-11, atol=1e-11)


def test_derivatives_of_several_outputs() -> None:
    net, x = Tanh(2, 3, (6, 5)).double(), points(4, 2)
    value, slope, laplacian = net.with_derivatives(x)
    assert torch.allclose(value, net(x), rtol=1e-13)
    for k in range(3):
        one = lambda p, k=k: net(p[None])[0, k]  # noqa: E731
        assert torch.allclose(slope[:, :, k], vmap(grad(one))(x), rtol=1e-11)
        assert torch.allclose(laplacian[:, k], vmap(lambda p, one=one: jacrev(grad(one))(p).trace())(x), rtol=1e-10, atol=1e-12)


def test_the_solution_is_zero_on_the_border() -> None:
    model, x = network(3), points(12, 3)
    for k in range(3):
        x[4 * k : 4 * k + 2, k], x[4 * k + 2 : 4 * k + 4, k] = 0, 1
    assert not model.solution(x).detach().any()
    assert bool(model.solution(points(3, 3)).detach().all())


def test_parameters_learn_through_the_derivatives() -> None:
    """The gradient of the residual against a difference quotient."""
    model, x = network(2), points(6, 2)
    target = torch.sin(math.pi * x).prod(1)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    along = torch.cos(torch.arange(len(start), dtype=torch.float64))

    def loss(step: float) -> Tensor:
        torch.nn.utils.vector_to_parameters(start + step * along, model.parameters())
        return mse(model(x), target).mean()

    value = loss(0)
    value.backward()
    found = sum(float((p.grad * part.view_as(p)).sum()) for p, part in zip(model.parameters(), parts(along, model), strict=True))  # type: ignore[operator]
    assert found == pytest.approx(float((loss(1e-6) - loss(-1e-6)).detach()) / 2e-6, rel=1e-7)


def parts(vector: Tensor, model: Poisson) -> tuple[Tensor, ...]:
    return torch.split(vector, [p.numel() for p in model.parameters()])


def test_it_computes_in_float32_too() -> None:
    double, single, x = network(2), network(2, dtype=torch.float32), points(9, 2)
    with torch.no_grad():
        assert torch.allclose(single(x.float()).double(), double(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "outputs"), [((1, 8, 8), 1), ((2,), 3)])
def test_what_is_no_such_equation(shape: tuple[int, ...], outputs: int) -> None:
    with pytest.raises(ValueError, match="needs points, shape .dimensions,., and one number each, got"):
        build_model(ModelConfig(name="poisson"), shape, outputs, seed=0)


def test_the_smooth_network_takes_any_vector() -> None:
    model = build_model(ModelConfig(name="tanh", widths=(4,)), (2, 3), 2, seed=0)
    assert model(torch.zeros(5, 2, 3)).shape == (5, 2)
