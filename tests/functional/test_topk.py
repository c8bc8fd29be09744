"""The top-k sparse autoencoder."""

import pytest
import torch
from nets import random_streams

from lightning_interp.functional.topk import TopKCode, train_top_k

OPTIONS = {"atoms": 8, "k": 2, "steps": 60, "lr": 3e-3}


def sparse(n=300, d=6, features=8, seed=0):
    """Activations made of one or two of eight directions."""
    generator = torch.Generator().manual_seed(seed)
    ways = torch.randn(features, d, generator=generator)
    has = torch.rand(n, features, generator=generator).topk(2, dim=1).indices
    codes = torch.zeros(n, features).scatter(1, has, torch.rand(n, 2, generator=generator) + 0.5)
    return codes @ (ways / ways.norm(dim=1, keepdim=True)) + 3


def trained(h, last=None, seed=0, **options):
    return train_top_k(h, **{**OPTIONS, **options}, generator=torch.Generator().manual_seed(seed), last=last)


def error(code: TopKCode, h):
    """Share of the variance that the reconstruction leaves, by a plain loop."""
    left = whole = 0.0
    for row in h.float():
        x = row / code.scale - code.center
        read = x @ code.read + code.bias
        kept = sorted(range(len(read)), key=lambda a: -float(read[a]))[: code.k]
        made = sum(max(0.0, float(read[a])) * code.write[a] for a in kept)
        left, whole = left + float(((made - x) ** 2).sum()), whole + float((x**2).sum())
    return left / whole


def test_at_most_k_atoms_are_not_zero_and_none_is_negative():
    h = sparse()
    for k in (1, 2, 5):
        codes = trained(h, k=k).codes(h)
        assert codes.dtype == torch.float64
        assert codes.shape == (300, 8)
        assert int((codes != 0).sum(1).max()) == k
        assert bool((codes >= 0).all())


def test_directions_are_of_unit_length():
    assert trained(sparse()).write.norm(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)


def test_the_reconstruction_gets_better():
    h = sparse()
    start, end = error(trained(h, steps=1), h), error(trained(h, steps=300), h)
    assert end < 0.7 * start
    assert end < 0.2


def test_a_code_is_selected_after_the_competition():
    h = sparse()
    code = trained(h)
    some = torch.tensor([5, 0])
    assert torch.equal(code.select(some).codes(h), code.codes(h)[:, some])
    assert torch.equal(code.select(some).select(torch.tensor([1])).codes(h), code.codes(h)[:, :1])
    assert torch.equal(code.select(some).threshold, code.threshold[some])


def test_a_warm_start_goes_on_from_where_it_stood():
    h = sparse()
    first = trained(h, steps=100)
    again = trained(h, last=first, steps=1, lr=1e-6)
    assert torch.allclose(again.write, first.write, atol=1e-5)
    assert not torch.allclose(again.write, trained(h, steps=1, lr=1e-6).write, atol=1e-2)
    assert error(trained(h, last=first, steps=100, seed=1), h) < error(first, h)
    selected = first.select(torch.tensor([2]))  # the others were only not shown
    assert torch.equal(trained(h, last=selected, steps=1).write, trained(h, last=first, steps=1).write)
    assert torch.equal(trained(h, last=first, atoms=5).write, trained(h, atoms=5).write)  # of another size: anew
    assert torch.equal(trained(h[:, :4], last=first).write, trained(h[:, :4]).write)


def test_the_last_code_is_left_as_it_is():
    first = trained(sparse())
    before = [part.clone() for part in first if isinstance(part, torch.Tensor)]
    trained(sparse(), last=first)
    assert all(torch.equal(a, b) for a, b in zip(before, (p for p in first if isinstance(p, torch.Tensor))))


def test_the_generator_alone_decides():
    h = sparse()
    before = random_streams()
    first, same, other = trained(h), trained(h), trained(h, seed=1)
    assert torch.equal(first.read, same.read)
    assert not torch.equal(first.read, other.read)
    assert random_streams() == before


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_off(outside):
    h = sparse()
    with outside():
        found = trained(h.clone())
    assert torch.equal(found.read, trained(h).read)
    assert not found.read.requires_grad


@pytest.mark.parametrize("h", [torch.ones(80, 4), torch.zeros(80, 4), torch.randn(3, 4), torch.eye(4)[:1].repeat(80, 1)])
def test_degenerate_activations_give_finite_codes(h):
    found = trained(h, steps=5)
    assert torch.isfinite(found.codes(h)).all()
    assert torch.isfinite(found.threshold).all()
