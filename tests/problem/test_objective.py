"""f(theta; D) and its subdomain parts against autograd on the concatenated samples, in float64 to 1e-12."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problem_cases import CPU, Case, case, near, point
from torch import Tensor, nn

from apts_mpi.partition import block
from apts_mpi.problem.evaluator import PIECE, Evaluator
from apts_mpi.problem.flat import FlatModel
from apts_mpi.problem.losses import resolve_loss
from apts_mpi.problem.objective import READY_BYTES, DataObjective, plan
from apts_mpi.problem.samples import Samples
from apts_mpi.problem.scoring import score

SELECTED = [(0, (0, 0)), (20, (0, 0)), (20, (2, 1)), (20, (0, 2))]  # data.batch, (epoch, batch)


def selected(batch: int, chosen: tuple[int, int], **options: int) -> Case:
    this = case(batch=batch, **options)
    this.objective.select(*chosen)
    return this


@pytest.mark.parametrize(("batch", "chosen"), SELECTED)
@pytest.mark.parametrize(("subdomains", "ranks"), [(1, 1), (3, 1), (3, 2), (7, 3)])
def test_owned_shares_of_all_subdomains_sum_to_f(subdomains: int, ranks: int, batch: int, chosen: tuple[int, int]) -> None:
    """Also with 61 samples over 7 subdomains, which are uneven."""
    value, grad, weights = 0.0, 0.0, 0.0
    for rank in range(ranks):
        this = selected(batch, chosen, subdomains=subdomains, ranks=ranks, rank=rank)
        for subdomain in this.objective.subdomains:
            share = torch.full((this.objective.n_params,), torch.nan, dtype=torch.float64)  # overwritten, not added to
            with_gradient = subdomain.owned(point(this), share)
            assert with_gradient == subdomain.owned(point(this), None)
            value, grad, weights = value + with_gradient, grad + share, weights + subdomain.weight
    rows = sum((this.rows(i, *chosen)[0] for i in range(subdomains)), [])
    direct, direct_grad = this.direct(point(this), rows)
    assert value == pytest.approx(direct, rel=1e-12) and near(grad, direct_grad)
    assert weights == pytest.approx(1, abs=1e-14)
    if not batch:
        assert sorted(rows) == list(range(61))


@pytest.mark.parametrize("overlap", [0.0, 0.1])
@pytest.mark.parametrize(("batch", "chosen"), SELECTED)
def test_local_is_the_mean_over_owned_and_borrowed(batch: int, chosen: tuple[int, int], overlap: float) -> None:
    this = case(samples=183, batch=3 * batch, overlap=overlap, subdomains=4)
    this.objective.select(*chosen)
    theta, grad, share, out = point(this), *torch.full((3, this.objective.n_params), torch.nan, dtype=torch.float64)
    for i, subdomain in enumerate(this.objective.subdomains):
        owned, borrowed = this.rows(i, *chosen)
        assert (subdomain.size, subdomain.borrowed) == (len(owned), len(borrowed))
        assert bool(borrowed) == (overlap > 0)
        direct, direct_grad = this.direct(theta, owned + borrowed)
        assert subdomain.local(theta, grad) == pytest.approx(direct, rel=1e-12) and near(grad, direct_grad)
        assert subdomain.local(theta, None) == pytest.approx(direct, rel=1e-12)
        value = subdomain.owned(theta, share)
        before, kept = this.objective.gradient_samples, share.clone()
        assert subdomain.local_from_owned(theta, value, share, out) == pytest.approx(direct, rel=1e-12) and near(out, direct_grad)
        assert torch.equal(share, kept)
        assert this.objective.gradient_samples - before == len(borrowed)  # nothing is evaluated twice


@pytest.mark.parametrize(("batch", "chosen"), SELECTED)
@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_chunks(chunks: int, batch: int, chosen: tuple[int, int]) -> None:
    this = selected(batch, chosen, subdomains=2)
    theta, n = point(this), this.objective.n_params
    for i, subdomain in enumerate(this.objective.subdomains):
        owned, borrowed = this.rows(i, *chosen)
        pieces = [owned[j * len(owned) // chunks : (j + 1) * len(owned) // chunks] for j in range(chunks)] + [borrowed]
        assert subdomain.cut(chunks) == len(pieces)
        grad, kept = torch.full((n,), torch.nan, dtype=torch.float64), torch.full((len(pieces) + 2, n), torch.nan, dtype=torch.float64)
        before = this.objective.gradient_samples
        value = subdomain.owned_by_chunk(theta, grad, kept)
        assert this.objective.gradient_samples - before == len(owned) + len(borrowed)
        share = torch.zeros(n, dtype=torch.float64)
        assert float(value) == pytest.approx(float(subdomain.owned(theta, share)), rel=1e-12) and near(grad, share)
        for j, piece in enumerate(pieces):
            direct = this.direct(theta, piece)[1]
            assert near(kept[j], direct)
            found, before = torch.ones(n, dtype=torch.float64), this.objective.gradient_samples
            subdomain.chunk_gradient(j, theta, found)
            assert this.objective.gradient_samples == before, "a chunk that may be replayed is counted by itself"
            subdomain.count_chunk(j)
            assert near(found, direct) and this.objective.gradient_samples - before == len(piece)
        assert torch.isnan(kept[len(pieces) :]).all()


def test_no_borrowed_chunk_without_overlap_and_cuts_end_with_the_minibatch() -> None:
    this = case(batch=20, overlap=0.0)
    this.objective.select(0, 0)
    subdomain = this.objective.subdomains[0]
    assert subdomain.cut(3) == 3
    this.objective.select(0, 1)
    with pytest.raises(IndexError):  # chunks of the earlier minibatch are gone
        subdomain.chunk_gradient(0, point(this), torch.zeros(this.objective.n_params, dtype=torch.float64))


@pytest.mark.parametrize("piece", [1, 7, 20, 61])
def test_evaluation_by_pieces_does_not_depend_on_their_size(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    this = case(subdomains=1)
    this.objective.select(0, 0)
    subdomain, theta, n = this.objective.subdomains[0], point(this), this.objective.n_params
    whole, whole_grad = this.direct(theta, list(range(61)))
    monkeypatch.setitem(PIECE, "cpu", piece)
    assert this.objective._evaluator.piece == piece  # it looks at the model once
    this.objective._evaluator.flat.module.register_forward_hook(lambda module, inputs, output: largest.append(len(output)))
    grad = torch.zeros(n, dtype=torch.float64)
    assert subdomain.owned(theta, grad) == pytest.approx(whole, rel=1e-12) and near(grad, whole_grad)
    assert max(largest) == piece and sum(largest) == 61


def test_samples_normalised_when_used_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers() -> tuple[list[float], Tensor]:
        this = selected(20, (1, 0), subdomains=2)
        theta, grads = point(this), torch.zeros(2, this.objective.n_params, dtype=torch.float64)
        return [sub.local(theta, grad) for sub, grad in zip(this.objective.subdomains, grads, strict=True)], grads

    ready = numbers()
    monkeypatch.setitem(READY_BYTES, "cpu", 0)
    late = numbers()
    assert ready[0] == late[0] and torch.equal(ready[1], late[1])


def test_counters_are_exact() -> None:
    this = selected(0, (0, 0), subdomains=2)
    theta, grad = point(this), torch.zeros(this.objective.n_params, dtype=torch.float64)
    first = this.objective.subdomains[0]

    def counts() -> tuple[int, int]:
        return this.objective.gradient_samples, this.objective.value_samples

    assert counts() == (0, 0) and (first.size, first.borrowed) == (30, 4)
    first.owned(theta, grad)
    assert counts() == (30, 0)
    first.local(theta, grad)
    assert counts() == (64, 0)
    first.owned(theta, None)
    assert counts() == (64, 30)
    first.local(theta, None)
    assert counts() == (64, 64)


def test_full_batch_is_selected_once_and_minibatches_change() -> None:
    full = case()
    full.objective.select(0, 0)
    rows = full.objective.subdomains[0]._share.rows
    full.objective.select(5, 0)
    assert full.objective.subdomains[0]._share.rows is rows and full.objective.batches == 1
    mini = case(batch=20)
    theta, values = point(mini), set()
    for chosen in ((0, 0), (0, 1), (1, 0)):
        mini.objective.select(*chosen)
        values.add(mini.objective.subdomains[0].owned(theta, None))
    assert len(values) == mini.objective.batches == 3


def wide(loss: object, count: int = 1000) -> DataObjective:
    """One subdomain of ``count`` float32 samples."""
    flat = FlatModel(nn.Linear(1, 1, bias=False), torch.float32, CPU)
    held = Samples([range(count)], torch.arange(float(count)).view(-1, 1), torch.zeros(count), dtype=torch.float32, device=CPU)
    this = DataObjective(Evaluator(flat, resolve_loss(loss), held), plan(count, 1, batch=0, overlap=0.0, seed=0), range(1), 1)
    this.select(0, 0)
    return this


@pytest.mark.fault(17)
def test_losses_of_a_hundred_million_are_summed_exactly() -> None:
    """Float32 near 1e8 has a spacing of 8; the mean over samples keeps what is below it."""
    steps = 8 * np.random.default_rng(0).integers(0, 1000, 1000)
    losses = torch.tensor(1e8 + steps, dtype=torch.float32)
    assert losses.double().tolist() == (1e8 + steps).tolist()
    this = wide(lambda outputs, targets: losses[: len(outputs)] + 0 * outputs[:, 0])
    value = this.subdomains[0].owned(torch.ones(1), torch.zeros(1))
    assert value == pytest.approx(1e8 + float(steps.mean()), abs=1e-7)
    losses[17] += 8
    assert this.subdomains[0].owned(torch.ones(1), None) - value == pytest.approx(0.008, abs=1e-7)


def test_gradient_reaches_the_host_in_no_chunk() -> None:
    this = wide("mse")
    subdomain = this.subdomains[0]
    subdomain.cut(4)
    grad = torch.zeros(1)
    assert subdomain.chunk_gradient(1, torch.ones(1), grad) is None
    rows = np.arange(250, 500)
    assert float(grad) == pytest.approx(float(2 * (rows**2).mean()), rel=1e-6)


def test_tokens_reach_the_model_as_integers() -> None:
    tokens = torch.tensor([[1, 2], [3, 0], [2, 2]], dtype=torch.int32)
    held = Samples([range(3)], tokens, tokens.long(), dtype=torch.float64, device=CPU, tokens=True)
    flat = FlatModel(nn.Embedding(4, 4), torch.float64, CPU)
    this = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), plan(3, 1, batch=0, overlap=0.0, seed=0), range(1), 1)
    this.select(0, 0)
    table = flat.initial().view(4, 4)
    log_p = torch.log_softmax(table, 1)
    wanted = -torch.stack([(log_p[a, a] + log_p[b, b]) / 2 for a, b in tokens.tolist()]).mean()
    assert this.subdomains[0].owned(flat.initial(), None) == pytest.approx(float(wanted), rel=1e-12)


def test_samples_must_fill_their_ranges() -> None:
    with pytest.raises(ValueError, match="4 inputs and 3 targets do not fill the ranges"):
        Samples([range(4)], torch.zeros(4, 2), torch.zeros(3), dtype=torch.float32, device=CPU)
    with pytest.raises(ValueError, match="4 inputs and 4 targets do not fill"):
        Samples([range(2), range(5, 6)], torch.zeros(4, 2), torch.zeros(4), dtype=torch.float32, device=CPU)


def test_a_sample_that_is_not_held_is_an_error_not_another_sample() -> None:
    held = Samples([range(4, 6), range(0, 1)], torch.zeros(3, 2), torch.zeros(3), dtype=torch.float32, device=CPU)
    assert held.rows(np.array([0, 4, 5, 4])).tolist() == [2, 0, 1, 0]
    with pytest.raises(AssertionError, match="a sample was asked for that this rank does not hold"):
        held.rows(np.array([4, 6]))


@pytest.mark.parametrize("channels", [False, True])
def test_normalisation_per_channel_and_scalar(channels: bool) -> None:
    images = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    scale = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(-1, 1, 1) if channels else torch.tensor(0.1, dtype=torch.float64)
    held = Samples([range(5)], images, torch.zeros(5), dtype=torch.float64, device=CPU, scale=scale, shift=-scale)
    assert held.inputs.dtype == torch.uint8
    taken = held.take(torch.tensor([4, 0]))[0]
    assert torch.allclose(taken, (images[[4, 0]].double() - 1) * scale, rtol=1e-13)
    few = held.few(2)
    assert few.ranges == [range(2)] and torch.equal(few.take(slice(0, 2))[0], held.take(slice(0, 2))[0])


def test_score_counts_hits_and_sums_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    this = selected(0, (0, 0), subdomains=1)
    theta, evaluator = point(this), this.objective._evaluator
    monkeypatch.setattr("apts_mpi.problem.scoring.PIECE", 13)
    total, hits, count = score(evaluator.flat, evaluator.loss, this.objective.samples, theta)
    nn.utils.vector_to_parameters(theta, this.module.parameters())
    outputs = this.module(this.inputs).detach()
    assert (hits, count) == (float((outputs.argmax(1) == this.targets).sum()), 61.0)
    assert total == pytest.approx(61 * this.direct(theta, list(range(61)))[0], rel=1e-12)
    regression = wide("mse", 10)
    evaluator = regression._evaluator
    assert np.isnan(score(evaluator.flat, evaluator.loss, regression.samples, torch.ones(1))[1])


def test_subdomains_are_those_of_the_rank_in_order() -> None:
    for ranks in (1, 2, 3):
        shares = [selected(0, (0, 0), subdomains=5, ranks=ranks, rank=rank).objective for rank in range(ranks)]
        sizes = [subdomain.size for share in shares for subdomain in share.subdomains]
        assert sizes == [len(block(61, 5, i)) for i in range(5)]


def test_room_for_ready_samples_is_shared_by_the_ranks_subdomains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three subdomains of 4 samples of 2 float64: 64 bytes each."""
    flat = FlatModel(torch.nn.Linear(2, 3), torch.float64, CPU)
    for room, wanted in [(3 * 64, True), (3 * 64 - 1, False)]:
        monkeypatch.setitem(READY_BYTES, "cpu", room)
        held = Samples([range(12)], torch.zeros(12, 2), torch.zeros(12, dtype=torch.long), dtype=torch.float64, device=CPU)
        orders = plan(12, 3, batch=0, overlap=0.0, seed=0)
        this = DataObjective(Evaluator(flat, resolve_loss("cross_entropy"), held), orders, range(3), 1)
        this.select(0, 0)
        assert [part._share._ready is not None for part in this.subdomains] == [wanted] * 3
