"""`OutputTable`: the same table however the rows come in."""

import pickle

import numpy as np
import pytest
import torch

from lightning_interp.functional.table import table
from lightning_interp.metrics import OutputTable

N = 200


def rows(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    values = torch.stack([torch.randint(2, (N,), generator=g), torch.randint(3, (N,), generator=g)], 1).double()
    output = torch.randn(N, 2, generator=g, dtype=torch.float64) * 3 + 100
    source = torch.randint(-3, 4, (N,), generator=g)
    correct = torch.randint(2, (N,), generator=g).double()
    return values, output, source, correct


def accumulated(pieces, data, with_source=True):
    values, output, source, correct = data
    metric = OutputTable(values.shape[1])
    for at in pieces:
        metric.update(table(values[at], output[at], source[at] if with_source else None, correct[at]))
    return metric.compute()


def pieces(size: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randperm(N, generator=torch.Generator().manual_seed(seed)).split(size))


def by_hand(data, with_source=True):
    """{(values, source): (count, mean, m2, correct)} in plain loops."""
    values, output, source, correct = (part.numpy() for part in data)
    found = {}
    for i in range(N):
        key = (*values[i], source[i] if with_source else 0)
        found.setdefault(key, []).append(i)
    return {
        key: (len(at), output[at].mean(0), ((output[at] - output[at].mean(0)) ** 2).sum(0), correct[at].sum())
        for key, at in found.items()
    }


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("size", [1, 7, 64, N])
def test_any_batches_in_any_order_give_the_groups_of_a_plain_loop(size, with_source):
    data = rows()
    got, truth = accumulated(pieces(size, seed=size), data, with_source), by_hand(data, with_source)
    assert len(got.values) == len(truth)
    for i in range(len(got.values)):
        count, mean, m2, correct = truth[(*got.values[i].tolist(), int(got.source[i]))]
        assert float(got.count[i]) == float(got.scored[i]) == count
        assert float(got.correct[i]) == correct
        np.testing.assert_allclose(got.mean[i].numpy(), mean, rtol=1e-13)
        np.testing.assert_allclose(got.m2[i].numpy(), m2, rtol=1e-9, atol=1e-9)


def test_the_rows_come_out_in_the_same_order_always():
    data = rows()
    one, many = accumulated([slice(None)], data), accumulated(pieces(9, seed=1), data)
    for name in ("values", "source", "count", "correct", "scored"):
        assert torch.equal(getattr(one, name), getattr(many, name))


def test_sources_keep_all_their_64_bits():
    # the bits of some int64 read as NaN: two such sources must not become one, nor lose a bit
    nan = torch.tensor([float("nan")], dtype=torch.float64).view(torch.int64)
    source = torch.cat([nan, nan + 1, nan, torch.tensor([2**63 - 1, -(2**63)])])
    metric = OutputTable(1)
    for i in range(5):
        metric.update(table(torch.zeros(1, 1), torch.ones(1, 1), source[i : i + 1]))
    got = metric.compute()
    assert sorted(got.source.tolist()) == sorted(set(source.tolist()))
    assert got.count.sum() == 5


def test_a_large_mean_costs_no_digits():
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    metric = OutputTable(1)
    for part in (x + 1e8).split(10):
        metric.update(table(torch.zeros(len(part), 1), part[:, None]))
    got = metric.compute()
    assert float(got.m2) == pytest.approx(float(((x - x.mean()) ** 2).sum()), rel=1e-6)


def test_no_row_gives_none():
    metric = OutputTable(2)
    metric.update(None)
    assert metric.compute() is None


def test_none_adds_nothing():
    data = rows()
    values, output, _, _ = data
    metric = OutputTable(2)
    metric.update(table(values, output))
    before = metric.compute()
    metric.update(None)
    assert all(torch.equal(a, b) for a, b in zip(metric.compute(), before))


def test_reset_forgets_everything():
    values, output, _, _ = rows()
    metric = OutputTable(2)
    metric.update(table(values, output))
    metric.reset()
    metric.update(None)
    assert metric.compute() is None
    metric.update(table(values[:5], output[:5]))
    assert metric.compute().count.sum() == 5


def test_it_survives_pickling():
    values, output, _, _ = rows()
    metric = OutputTable(2)
    metric.update(table(values, output))
    twin = pickle.loads(pickle.dumps(metric))
    assert all(torch.equal(a, b) for a, b in zip(metric.compute(), twin.compute()))


def test_casting_a_model_to_half_leaves_it_in_float64():
    values, output, _, _ = rows()
    metric = OutputTable(2).half()
    metric.update(table(values, output))
    assert metric.compute().mean.dtype == torch.float64
