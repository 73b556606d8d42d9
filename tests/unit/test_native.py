"""The compiled kernels against their torch twins; without a compiled extension the twins and the door alone are tested."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apts_mpi.native import device, extension, kernels, small, twins

NEEDED = pytest.mark.skipif(extension.extension() is None, reason=f"kernels: {extension.state()}")
DTYPES = (torch.float32, torch.float64)
LENGTHS = (1, 7, 8, 511, 513, 8_191, 8_193, 40_007)
IN_A_ROW = 8192 // 2 + 16  # additions: a block in vectors of two float64, the narrowest, and the blocks pairwise


def close(a: float, b: float, size: float, dtype: torch.dtype) -> bool:
    return abs(a - b) <= 8 * torch.finfo(dtype).eps * size + 1e-300


def summed(a: float, b: float, size: float) -> bool:
    """Whether ``a`` is the sum ``b`` up to what its additions in float64 may round; ``size``: the sum of its terms without their signs."""
    return abs(a - b) <= IN_A_ROW * 0.5 * torch.finfo(torch.float64).eps * size


def case(n: int, dtype: torch.dtype, rows: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(n)
    whole = torch.randn((rows + 3) * n + 1, generator=random, dtype=dtype)[1:]  # not aligned
    return whole[: rows * n].view(rows, n), whole[rows * n : (rows + 1) * n], whole[(rows + 1) * n : (rows + 2) * n]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@NEEDED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("used", [0, 1, 3, 5, 6, 10, 12, 14])  # some at a time, and what is left; the spare rows among them
def test_observe(n: int, dtype: torch.dtype, used: int) -> None:
    memory, grad, grad_new = case(n, dtype, rows=14)
    other = memory.clone()
    found, wanted = kernels.observe_(memory, used, 12, grad, grad_new), twins.observe_(other, used, 12, grad, grad_new)
    assert torch.equal(memory, other), "the bits of y"
    largest = max(float(memory.double().square().sum(1).max()), float(grad.double() @ grad.double()) * 4)
    assert len(found) == len(wanted) == 3 * used + 10
    assert all(close(a, b, largest, dtype) for a, b in zip(found, wanted, strict=True))
    exact = [math.fsum((row.double() * other.double()).tolist()) for row in memory[:used] for other in (memory[12], memory[13], grad_new)]
    assert all(summed(a, b, largest) for a, b in zip(found, exact, strict=False))


@NEEDED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("count", [0, 3, 5, 6, 11])
def test_combine(n: int, dtype: torch.dtype, count: int) -> None:
    memory, grad, _ = case(n, dtype)
    chosen, weights = [(5 * k) % 8 for k in range(count)], [(-0.7) ** k for k in range(count)]
    out, other = torch.empty_like(grad), torch.empty_like(grad)
    square, wanted = kernels.combine_(memory, chosen, weights, -0.7, grad, out), twins.combine_(memory, chosen, weights, -0.7, grad, other)
    assert torch.allclose(out, other, rtol=0, atol=32 * torch.finfo(dtype).eps * float(memory.abs().max()))
    assert close(square, wanted, 16 * wanted, dtype)
    assert summed(square, math.fsum(out.double().square().tolist()), square)


@NEEDED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_reach(n: int, dtype: torch.dtype) -> None:
    memory, step, origin = case(n, dtype)
    given, ours, twin = (step, memory[0], origin, memory[1]), torch.empty(2, n, dtype=dtype), torch.empty(2, n, dtype=dtype)
    found, expected = kernels.reach_(*given, *ours), twins.reach_(*given, *twin)
    assert torch.equal(ours, twin) and torch.equal(ours[1], origin + (memory[0] + step)), "the bits of the steps and of the trial point"
    for value, of_twin, other in zip(found, expected, (ours[0], memory[1]), strict=True):
        products = ours[0].double() * other.double()
        assert close(value, float(of_twin), float(products.abs().sum()), dtype)
        assert summed(value, math.fsum(products.tolist()), float(products.abs().sum()))


@NEEDED
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_blend(n: int, dtype: torch.dtype) -> None:
    memory, fresh, kept = case(n, dtype)
    momentum, other, grad = memory[0].clone(), memory[0].clone(), memory[1]
    square, wanted = (where.blend_(into, fresh, kept, grad, 0.9) for where, into in ((kernels, momentum), (twins, other)))
    size = float(memory[:2].abs().max() + fresh.abs().max() + kept.abs().max())
    assert torch.allclose(momentum, other, rtol=0, atol=4 * torch.finfo(dtype).eps * size)
    assert close(square, wanted, 16 * n * size**2, dtype)
    assert summed(square, math.fsum(momentum.double().square().tolist()), square)
    start = torch.zeros_like(momentum)
    kernels.blend_(start, kept.clone(), kept, grad, 0.5)
    assert torch.equal(start, 0.5 * grad), "at theta_k the gradient is the global one, to the bit"


@NEEDED
def test_threads_do_not_move_a_bit() -> None:
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        memory, grad, grad_new = case(100_003, torch.float32)
        products = kernels.observe_(memory, 6, 6, grad, grad_new)
        out = torch.empty_like(grad)
        square = kernels.combine_(memory, [1, 2], [0.1, 0.3], 0.7, grad, out)
        blended = kernels.blend_(memory[3], memory[4], grad, grad_new, 0.9)
        found.append((products, square, blended, kernels.reach_(out, memory[0], grad, grad_new, memory[1], memory[2])))
    assert found[0] == found[1]


@NEEDED
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    memory, grad, grad_new = case(9_001, torch.float32)
    grad_new[9_000] = bad
    found = kernels.observe_(memory, 6, 6, grad, grad_new)
    assert not torch.isfinite(torch.tensor(found[2:18:3])).any()
    assert kernels.combine_(memory, [0], [0.0], 1.0, grad_new, torch.empty_like(grad)) != 0.0


def test_the_door() -> None:
    memory, grad, grad_new = case(16, torch.float32)
    with pytest.raises(TypeError, match="one dtype"):
        kernels.observe_(memory, 2, 6, grad.double(), grad_new)
    with pytest.raises(TypeError, match="contiguous"):
        kernels.blend_(memory[:, 0], memory[:, 1], memory[:, 0], memory[:, 1], 0.9)
    with pytest.raises(TypeError, match="one device"):
        kernels.reach_(grad, grad, grad, grad, grad_new, grad.to("meta"))
    with pytest.raises(ValueError, match="memory"):
        kernels.observe_(memory, 2, 6, grad[1:], grad_new)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.observe_(memory, 2, 7, grad, grad_new)
    with pytest.raises(ValueError, match="weights"):
        kernels.combine_(memory, [8], [1.0], 1.0, grad, grad_new)
    with pytest.raises(ValueError, match="six vectors of one length"):
        kernels.reach_(grad, grad, grad, grad[1:], grad_new, grad_new)
    with pytest.raises(ValueError, match="four vectors of one length"):
        kernels.blend_(grad, grad, grad_new[1:], grad, 0.9)


def on_gpu(like: torch.device) -> bool:
    return torch.cuda.is_available() and kernels.compiled(torch.zeros(1, device=like))


@pytest.mark.skipif(not on_gpu(torch.device("cuda")), reason="no NVIDIA GPU, or kernels without CUDA; tests/native emulates one")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_on_a_gpu(n: int, dtype: torch.dtype) -> None:
    host, grad, grad_new = case(n, dtype)
    memory, g, h, out = (values.cuda() for values in (host, grad, grad_new, grad))
    largest = float(host.double().square().sum(1).max()) * 8
    found = kernels.observe_(memory, 6, 6, g, h)
    assert isinstance(found, torch.Tensor) and found.is_cuda
    pairs = zip(found.tolist(), twins.observe_(host, 6, 6, grad, grad_new), strict=True)
    assert all(close(a, b, largest, dtype) for a, b in pairs)
    assert torch.equal(memory.cpu(), host), "the bits of y"
    square = kernels.combine_(memory, [0, 5], [0.5, -1.0], -0.7, g, out)
    assert isinstance(square, torch.Tensor) and square.is_cuda
    assert close(float(square), twins.combine_(host, [0, 5], [0.5, -1.0], -0.7, grad, grad.clone()), 16 * float(square), dtype)
    sums = kernels.reach_(g, memory[0], memory[1], h, memory[2], memory[3])
    wanted = twins.reach_(grad, host[0], host[1], grad_new, host[2], host[3])
    assert isinstance(sums, torch.Tensor) and sums.is_cuda
    assert all(close(a, b, largest, dtype) for a, b in zip(sums.tolist(), wanted.tolist(), strict=True))
    assert torch.equal(memory.cpu(), host), "the bits of the steps and of the trial point"


@pytest.mark.skipif(not on_gpu(torch.device("cuda")), reason="no NVIDIA GPU, or kernels without CUDA; tests/native emulates one")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
def test_a_step_of_the_sweep_on_a_gpu(n: int, dtype: torch.dtype) -> None:
    host, grad, point = case(n, dtype)
    memory, stride, moved, momentum, g = host.cuda(), torch.tensor(0.25, dtype=dtype), point.cuda(), grad.clone(), grad.cuda()
    wanted = twins.blend_(momentum, host[0], host[1], host[2], 0.9)
    squares = kernels.blend_(g, memory[0], memory[1], memory[2], 0.9)
    assert isinstance(squares, torch.Tensor) and close(float(squares.sum()), wanted, wanted, dtype)
    assert close(float(kernels.square(g).sum()), wanted, wanted, dtype)
    kernels.advance_(moved, g, stride.cuda(), squares)
    kernels.advance_(point, momentum, stride, kernels.square(momentum))
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (1e-12, 1e-13)
    assert torch.allclose(g.cpu(), momentum, rtol=rtol, atol=atol) and torch.allclose(moved.cpu(), point, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_as_long_as_asked_for(dtype: torch.dtype) -> None:
    _, direction, point = case(1000, dtype)
    before = point.clone()
    kernels.advance_(point, direction, torch.tensor(0.25, dtype=dtype), kernels.square(direction))
    assert close(float(torch.linalg.vector_norm(point - before)), 0.25, 0.25, dtype)
    zero = torch.zeros_like(direction)
    kernels.advance_(point, zero, torch.tensor(0.25, dtype=dtype), kernels.square(zero))
    assert bool(torch.isfinite(point).all())
    with pytest.raises(ValueError, match="two vectors of one length"):
        kernels.advance_(point, direction[1:], torch.tensor(0.25, dtype=dtype), kernels.square(direction))


def test_twins_serve_a_gpu_that_starts_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a driver that is older than the run time of the kernels; asked once for each GPU."""
    asked = list[torch.device]()

    def square(vector: torch.Tensor) -> torch.Tensor:
        asked.append(vector.device)
        raise RuntimeError("square_cuda_: CUDA driver version is insufficient for CUDA runtime version\nmore of it")

    monkeypatch.setattr(torch, "ones", lambda count, device: SimpleNamespace(device=device))
    monkeypatch.setattr(device, "square", square)
    monkeypatch.setattr(kernels, "extension", lambda: SimpleNamespace(cuda=True))
    gpu = torch.device("cuda", 3)
    like = SimpleNamespace(dtype=torch.float32, numel=lambda: 4, device=gpu, is_cuda=True)
    device.refused.cache_clear()
    try:
        assert not kernels.compiled(like) and not kernels.compiled(like)  # type: ignore[arg-type]
        assert kernels.refused(gpu) == "square_cuda_: CUDA driver version is insufficient for CUDA runtime version"
        assert asked == ["cuda:3"] and kernels.refused(torch.device("cpu")) == ""
    finally:
        device.refused.cache_clear()


@pytest.mark.skipif(not getattr(extension.extension(), "cuda", False), reason="kernels without CUDA")
def test_kernels_of_a_gpu_refuse_memory_of_the_host() -> None:
    vector, room = torch.zeros(8), torch.zeros(8, dtype=torch.float64)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        extension.extension().reach_cuda_(vector, vector, vector, vector, vector, vector, room, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("wish", ["0", "1", "yes"])
def test_the_switch(wish: str) -> None:
    code = "import sys\nfrom apts_mpi.native import extension\nsys.modules['apts_mpi.native._kernels'] = None\nprint(extension.state())"
    environment = {**os.environ, "APTS_NATIVE": wish}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if wish == "0":
        assert done.stdout == "torch twins, APTS_NATIVE=0\n"
    else:
        assert done.returncode == 1 and ("cannot be loaded" if wish == "1" else "must be 0, 1 or empty") in done.stderr


SMALL = pytest.mark.skipif(not small.compiled(), reason=f"kernels: {extension.state()}")


@SMALL
@pytest.mark.parametrize("k", [0, 1, 2, 3, 10, 22])
def test_small_matrices_of_anything(k: int) -> None:
    """Also what is not a number, nothing at all, or no Gram matrix; what comes back has the shapes that were asked for."""
    rng, bad = np.random.default_rng(k), np.array([math.nan, math.inf, -math.inf, 1e300, -1e-300, 0.0])
    for share in (0.0, 0.02, 0.3, 1.0):
        for _ in range(50):
            ss, sy, yy, basis = rng.standard_normal((4, k, k))
            if share == 0.0:
                ss, sy, yy = ss @ ss.T, ss @ sy.T, sy @ sy.T
            for matrix in (ss, sy, yy, basis):
                matrix[rng.random((k, k)) < share] = rng.choice(bad)
            gamma, gg, radius = (rng.choice(bad) if rng.random() < share else rng.standard_normal() for _ in range(3))
            used, p, delta = small.sr1(ss, sy, yy, gamma, 1e-15)
            assert p.shape == (k, len(used)) and np.isfinite(delta).all() and delta.all() and len(delta) == len(used)
            values, found, noise = small.spectrum(ss, sy, yy, gamma, used, p, delta, 1e-15, 1e-9, 5)
            assert found.shape == (k, len(values)) and len(values) <= min(len(used), 5) and noise >= 1e-15
            for eigenvalues, vectors in ((values, found), (ss[:, 0] if k else np.zeros(0), basis)):
                products = (sy[0], yy[0]) if k else (np.zeros(0), np.zeros(0))
                solution, (_, s, y) = small.minimise(ss, sy, yy, gamma, eigenvalues, vectors, noise, *products, gg, k + 1, radius)
                assert s.shape == y.shape == (k,) and np.isfinite(solution[0]).all() and solution[2] >= 0
                assert solution[7] or not solution[0].any()


@SMALL
def test_small_matrices_have_a_door() -> None:
    one, row = np.eye(2), np.ones(2)
    with pytest.raises(ValueError, match="three square matrices of one size"):
        small.sr1(one, one, np.eye(3), 1.0, 0.0)
    with pytest.raises(ValueError, match="three square matrices of one size"):
        small.sr1(one[:1], one, one, 1.0, 0.0)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        small.sr1(one.astype(np.float32), one, one, 1.0, 0.0)  # type: ignore[arg-type]
    for used in ([0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="pairs must be of the Gram matrices"):
            small.spectrum(one, one, one, 1.0, np.array(used), one, row, 0.0, 0.0, 2)
    with pytest.raises(ValueError, match="p must be"):
        small.spectrum(one, one, one, 1.0, np.array([0]), one, row, 0.0, 0.0, 2)
    for basis, products in ((np.eye(3), row), (one, np.ones(3))):
        with pytest.raises(ValueError, match="basis must be"):
            small.minimise(one, one, one, 1.0, row, basis, 0.0, products, row, 1.0, 2, 1.0)
