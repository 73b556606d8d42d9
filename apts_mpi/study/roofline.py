"""A machine of which only arithmetic and memory speed are stated, for ``whatif``: one GPU, say."""

from __future__ import annotations

from apts_mpi.study.machine import Compute, Machine, Parts

# Vectors of n numbers that an operation reads and writes.
WORDS = {
    "copy": 2, "zero": 1, "add": 3, "sub": 3, "mul": 2, "dot": 2, "square": 1, "lerp": 3, "length": 1, "addcmul": 3, "combine": 1,
    "checksum": 3, "reach": 6,
}  # fmt: skip
OPTIMIZER = {"sgd": 5, "adam": 7, "adamw": 7}  # with momentum
STEP = 10  # of an L-SR1 step without pairs; each pair adds 4: s and y are read when the step and when the inner products are made
GRADIENT = 3  # of a gradient: theta read twice, the gradient written
PIECE = 1024
SAMPLES = (1, *(2**k for k in range(1, 11)))


def roofline(
    flops: float, bandwidth: float, n_params: int, flops_per_gradient: float, *, memory: int = 5, numbers: int = 0, itemsize: int = 4,
    overhead: float = 0.0, bucket: int = 2**20,
) -> Machine:  # fmt: skip
    """One rank with ``flops`` per second and ``bandwidth`` bytes per second: everything takes the longer of arithmetic and memory.

    ``flops_per_gradient`` of a sample; the loss alone takes a third of it. ``numbers`` of a sample are read and written when it is
    chosen. ``overhead``: seconds of each evaluation and each message beside. ValueError for figures that are not positive.
    """
    if not (flops > 0 and bandwidth > 0 and n_params > 0 and flops_per_gradient > 0):
        raise ValueError("flops, bandwidth, n_params and flops_per_gradient must be positive")
    word = n_params * itemsize / bandwidth

    def table(share: float, words: int) -> tuple[tuple[int, float], ...]:
        return tuple((b, overhead + max(share * flops_per_gradient * b / flops, words * word)) for b in SAMPLES)

    gradient, value = table(1.0, GRADIENT), table(1 / 3, 1)
    sample = 2 * numbers * itemsize / bandwidth
    take = tuple((b, b * sample) for b in SAMPLES)
    nbytes = n_params * itemsize
    parts = max(1, nbytes // bucket)
    ready = tuple(
        (b, (*(v + (g - v) * (i + 1) / parts for i in range(parts)), g)) for (b, g), (_, v) in zip(gradient, value, strict=True)
    )
    one = Compute(
        ranks=1, n_params=n_params, itemsize=itemsize, numbers=numbers, piece=PIECE, ready_bytes=2**62, gradient=gradient, value=value,
        chunk=table(1.0, GRADIENT + 1), select=take, take=take, vector={name: words * word for name, words in WORDS.items()},
        optimizer={name: words * word for name, words in OPTIMIZER.items()}, lsr1=tuple((STEP + 4 * k) * word for k in range(memory + 1)),
        lsr1_begin=(2 * memory + 1) * word, message=overhead, parts=Parts(bucket, (nbytes // parts,) * parts, ready),
    )  # fmt: skip
    return Machine({1: one})
