"""Limited-memory SR1 with the OBS subproblem solver, from inner products with the memory alone.

S and Y are rows of one buffer on the device of the model (``pairs``), in whose spare slot steps are proposed and pairs
tried. Everything else is float64 on the host.
Sources: Brust, Erway, Marcia 2017; numerics in `docs/`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apts_mpi.native import kernels
from apts_mpi.solver.compact import Spectrum, product_noise, spectrum, sr1
from apts_mpi.solver.model import Observed, Step, block_sizes
from apts_mpi.solver.obs import Combination, GradProducts, minimise
from apts_mpi.solver.pairs import Pairs
from apts_mpi.solver.subproblem import Solution
from apts_mpi.solver.vectors import number, to_device, to_host

Array = NDArray[np.float64]

GAMMA_RANGE = (1e-8, 1e8)  # gamma = y'y / s'y is clamped to it
CUT = 1e-2
TRIANGLE = np.array([[0, 1, 2, 3], [1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]])  # where a symmetric (4, 4) matrix has its upper triangle


class LSR1:
    """The model m(s) = g's + s'Bs/2 with B = gamma I + Psi M Psi' of at most ``memory`` pairs.

    See ``model.Model`` for how it is called. Vectors are (n_params,), contiguous, of ``dtype`` (float32 or
    float64) on ``device``. ``gamma_init`` serves until a pair with s'y > 0 is taken. ``cut`` is the relative
    eigenvalue of the scaled Psi'Psi below which a direction is dropped (``compact.spectrum``). The default is a matter of
    curvature, not of rounding: nearly collinear pairs of a loss that is not quadratic give large false
    eigenvalues. A memory that is never reset does not work below 1e-3, in float64 neither.
    """

    def __init__(
        self, n_params: int, memory: int, dtype: torch.dtype, device: torch.device, gamma_init: float = 1.0, cut: float = CUT
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if n_params < 1 or memory < 0 or not math.isfinite(gamma_init):
            raise ValueError(f"need n_params >= 1, memory >= 0, finite gamma_init; got {n_params}, {memory}, {gamma_init}")
        self.n_params, self.memory, self.gamma_init = n_params, memory, gamma_init
        self.noise = product_noise(dtype)
        self.cut = cut
        self._product_block, self._block = (min(n_params, size) for size in block_sizes(device))
        self.pairs = Pairs(memory, torch.zeros(n_params, dtype=dtype, device=device))
        self._pack = torch.zeros(4, self._block, dtype=dtype, device=device)
        self.skipped = 0  # pairs refused since construction
        self.reset()

    def reset(self) -> None:
        """Forget all pairs and the gradient; ``begin`` must follow."""
        self.pairs.clear()
        self.gamma = self.gamma_init
        self._products = self._products_new = np.full(len(self.pairs.rows), math.nan)
        self._square = self._square_new = math.nan
        self._spectrum: Spectrum | None = None

    def state(self) -> dict[str, Tensor]:
        """gamma and the pairs, live."""
        return {"gamma": number(self.gamma), **self.pairs.state()}

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Put every pair back into its slot; ``begin`` must follow. ValueError if the slots are not those of such a memory."""
        self.reset()
        self.pairs.restore_(state)
        self.gamma = float(state["gamma"])

    @property
    def count(self) -> int:
        """Pairs in the memory."""
        return len(self.pairs.order)

    def begin(self, grad: Tensor) -> float:
        """Take ``grad`` as the gradient at the current point; returns its norm. One pass, one transfer."""
        used, parts = self._used_rows(), []
        for start in range(0, self.n_params, self._product_block):
            g = grad[start : start + self._product_block]
            parts += [torch.mv(self.pairs.rows[:used, start : start + len(g)], g), torch.dot(g, g).view(1)]
        values = torch.cat(parts).view(-1, used + 1).sum(0, dtype=torch.float64).cpu().numpy()
        self._products = np.zeros(len(self.pairs.rows))
        self._products[:used], self._square = values[:-1], float(values[-1])
        return math.sqrt(self._square)

    def propose_(self, grad: Tensor, radius: float) -> Step:
        """Minimise m(s) over ||s|| <= radius: the subproblem on the host, then s = c_g g + S'c_S + Y'c_Y in one pass."""
        solution, weights = self._solve(radius)
        out = self.pairs.rows[2 * self.pairs.spare]
        if solution.step_norm == 0:
            out.zero_()
        else:
            self._combine_(weights, grad, radius, out)
        return Step(out, solution.predicted, solution.step_norm, solution.hits_boundary, solution.finite)

    def observe_(self, step: Tensor, grad: Tensor, grad_new: Tensor, also: Sequence[Tensor | float] = ()) -> Observed:
        """Offer the pair (s, y = grad_new - grad) and look at ``grad_new``. One pass, one transfer, in which ``also`` comes.

        The pair is refused, and counted, unless everything is finite and |s'(y - Bs)| >= 1e-8 ||s|| ||y - Bs||.
        Its inner products are taken from y itself, not from differences of other products.
        """
        columns, small, numbers = self._pass_(step, grad, grad_new, also)
        pair = self.pairs.spare_rows
        columns[:2, pair] = small[:2, :2]
        columns[2, pair] = small[2, :2]
        self._products_new, self._square_new = columns[2], float(small[2, 2])
        known = all(map(math.isfinite, numbers))
        taken = known and bool(np.isfinite(columns).all() and np.isfinite(small).all()) and self._take(columns[:2], small[3, :2])
        self.skipped += known and not taken
        return Observed(known and math.isfinite(self._square_new), taken, numbers)

    def accept(self) -> None:
        """Make the ``grad_new`` observed last the current gradient."""
        self._products, self._square = self._products_new, self._square_new

    # --- host: tiny float64 matrices -------------------------------------------------------------

    def _take(self, columns: Array, grad_products: Array) -> bool:
        """Let the pair in the spare slot into the memory if it passes the test; its row of the Gram matrix is ``columns``."""
        pair, products = self.pairs.spare_rows, self.pairs.products
        products[pair] = columns
        products[:, pair] = columns.T
        self._products[pair] = grad_products
        used = sr1(self.pairs.gram([*self.pairs.order, self.pairs.spare]), self.gamma, self.noise).used
        if not len(used) or used[-1] != self.count:
            return False
        curvature, square = columns[:, pair[1]].tolist()
        if curvature > 0:
            self.gamma = float(min(max(square / curvature, GAMMA_RANGE[0]), GAMMA_RANGE[1]))
        self._spectrum = None
        self.pairs.take()
        return True

    def _solve(self, radius: float) -> tuple[Solution, Combination]:
        """The subproblem's solution and its coefficients; the spectrum of B is kept until a pair is taken."""
        gram = self.pairs.gram()
        if self._spectrum is None:
            self._spectrum = spectrum(gram, sr1(gram, self.gamma, self.noise), self.noise, self.cut, self.n_params)
        s = self.pairs.s_rows(self.pairs.order)
        products = GradProducts(self._products[s], self._products[s + 1], self._square)
        return minimise(gram, self._spectrum, products, self.n_params, radius)

    # --- device: passes over the memory ----------------------------------------------------------

    def _used_rows(self) -> int:
        """Rows from the first to the last pair, the spare slot among them once the memory is full."""
        return 2 * (max(self.pairs.order) + 1) if self.pairs.order else 0

    def _pass_(self, step: Tensor, grad: Tensor, grad_new: Tensor, also: Sequence[Tensor | float]) -> tuple[Array, Array, list[float]]:
        """Put the pair into the spare slot and take all inner products of (s, y, g_new) with the memory.

        Returns them as (3, rows) and those of (s, y, g_new, g) among each other as (4, 4), float64 on the host, and ``also``.
        The vectors are packed per block, since a matrix of one leading dimension multiplies twice as fast.
        """
        used, spare, memory = self._used_rows(), 2 * self.pairs.spare, self.pairs.rows
        if step.data_ptr() != memory[spare].data_ptr():
            memory[spare].copy_(step)
        columns = np.zeros((3, len(memory)))
        if kernels.compiled(memory):
            found, numbers = _together(kernels.observe_(memory, used, spare, grad, grad_new), also)
            columns[:, :used] = found[:-10].reshape(used, 3).T
            return columns, symmetric(found[-10:]), numbers
        wide, small = [], []
        for start in range(0, self.n_params, self._block):
            rows = memory[:, start : start + self._block]
            pack = self._pack[:, : rows.shape[1]]
            pack[0].copy_(rows[spare])
            pack[2].copy_(grad_new[start : start + self._block])
            pack[3].copy_(grad[start : start + self._block])
            torch.sub(pack[2], pack[3], out=pack[1])
            rows[spare + 1].copy_(pack[1])
            for first in range(0, rows.shape[1], self._product_block):
                part = pack[:, first : first + self._product_block]
                wide.append(torch.mm(part[:3], rows[:used, first : first + self._product_block].T))
                small.append(torch.mm(part, part.T))
        sums = [torch.stack(parts).sum(0, dtype=torch.float64).view(-1) for parts in (wide, small)]
        values, numbers = _together(torch.cat(sums), also)
        columns[:, :used] = values[:-16].reshape(3, used)
        return columns, values[-16:].reshape(4, 4), numbers

    def _combine_(self, combination: Combination, grad: Tensor, radius: float, out: Tensor) -> None:
        """out = c_g g + S'c_S + Y'c_Y, then scaled back where rounding took it over ``radius``."""
        if kernels.compiled(out):
            s = self.pairs.s_rows(self.pairs.order)
            chosen, by = [*s.tolist(), *(s + 1).tolist()], [*combination.s.tolist(), *combination.y.tolist()]
            square = kernels.combine_(self.pairs.rows, chosen, by, combination.grad, grad, out)
            if isinstance(square, Tensor):
                out.mul_((radius / square.sqrt()).clamp(max=1.0).to(out.dtype))  # no synchronisation
            elif (length := math.sqrt(square)) > radius:
                out.mul_(radius / length)
            return
        rows, s = np.zeros(len(self.pairs.rows)), self.pairs.s_rows(self.pairs.order)
        rows[s], rows[s + 1] = combination.s, combination.y
        weights = to_device(rows, self.pairs.rows)
        used, spare = self._used_rows(), 2 * self.pairs.spare
        ranges = [(0, min(spare, used)), (min(spare + 2, used), used)]
        squares = []
        for start in range(0, self.n_params, self._block):
            part = out[start : start + self._block]
            memory = self.pairs.rows[:, start : start + self._block]
            torch.mul(grad[start : start + self._block], combination.grad, out=part)
            for first, last in ranges:
                if first < last:
                    part.addmv_(memory[first:last].T, weights[first:last])
            squares.append(torch.dot(part, part))
        norm = torch.stack(squares).sum(dtype=torch.float64).sqrt()
        out.mul_((radius / norm).clamp(max=1.0).to(out.dtype))


def _together(sums: Tensor | list[float], also: Sequence[Tensor | float]) -> tuple[Array, list[float]]:
    """Sums and further numbers on the host; from a device in one transfer."""
    if isinstance(sums, list):
        return np.array(sums), to_host(also)
    values = torch.cat([sums, *(torch.as_tensor(number, dtype=torch.float64, device=sums.device).view(1) for number in also)]).cpu().numpy()
    return values[: len(sums)], values[len(sums) :].tolist()


def symmetric(triangle: Array) -> Array:
    """The (4, 4) matrix whose upper triangle is ``triangle``, (10,), by rows."""
    matrix: Array = triangle[TRIANGLE]
    return matrix
