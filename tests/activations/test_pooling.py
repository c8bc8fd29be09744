"""Pooling against loops, and `lift` as its inverse."""

import pytest
import torch
from torch import nn

from lightning_interp import Concept, Confounder, explain
from lightning_interp.activations.pooling import MODES, Pooling
from lightning_interp.errors import InterpError, LayerError

N, T, D = 4, 5, 3
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0]])


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def kept(mask: torch.Tensor | None, i: int, t: int) -> list[int]:
    return [j for j in range(t) if mask is None or mask[i, j]]


def looped(a: torch.Tensor, mode: str, mask: torch.Tensor | None) -> torch.Tensor:
    """Token by token."""
    n, t, d = a.shape
    out = torch.zeros(n, d, dtype=a.dtype)
    for i in range(n):
        at = kept(mask, i, t)
        chosen = {"mean": list(range(t)), "first": at[:1], "last": at[-1:], "masked_mean": at}[mode]
        for j in chosen:
            out[i] += a[i, j] / len(chosen)
    return out


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", [None, MASK, MASK.bool(), MASK.double()])
def test_tokens_are_pooled_as_a_loop_would(mode, mask):
    a = random(N, T, D)
    torch.testing.assert_close(Pooling(mode).pool(a, nn.Linear(D, D), mask), looped(a, mode, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_of_another_length_is_not_the_tokens(mode):
    a = random(N, T, D)
    longer = torch.ones(N, T + 1)
    longer[:, 2:] = 0
    torch.testing.assert_close(Pooling(mode).pool(a, None, longer), looped(a, mode, None), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_whose_tokens_are_all_masked_is_finite_and_leaves_the_others_alone(mode):
    mask = MASK.clone()
    mask[0] = 0
    a = random(N, T, D)
    pooled = Pooling(mode).pool(a, None, mask)
    assert torch.isfinite(pooled).all()
    assert torch.equal(pooled[1:], Pooling(mode).pool(a, None, MASK)[1:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "module"),
    [((N, D, 2, 3), nn.Conv2d(1, 1, 1)), ((N, D, 2, 3, 2), nn.Conv3d(1, 1, 1)), ((N, D, T), nn.Conv1d(1, 1, 1)),
     ((N, D, T), nn.BatchNorm1d(D)), ((N, D, 2, 3), None)],
)  # fmt: skip
def test_space_is_averaged_in_any_mode(mode, shape, module):
    a = random(*shape)
    plain = torch.stack([torch.stack([a[i, c].mean() for c in range(D)]) for i in range(N)])
    torch.testing.assert_close(Pooling(mode).pool(a, module, None), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_vectors_stay(mode):
    a = random(N, D)
    assert torch.equal(Pooling(mode).pool(a, nn.Linear(D, D), MASK), a)


@pytest.mark.parametrize("shape", [(N,), (N, 2, 2, 2, 2, 2), ()])
def test_other_shapes_are_an_error_that_shows_them(shape):
    with pytest.raises(
        LayerError, match=r"an activation of shape \[.*\] cannot be pooled to \[n, d\]; give `pooling` a function"
    ):
        Pooling().pool(random(*shape))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "module"),
    [((N, D), None), ((N, T, D), None), ((N, 1, D), None), ((N, D, 4, 4), None), ((N, D, T), nn.Conv1d(1, 1, 1))],
)
def test_what_was_pooled_is_no_view_of_the_activation(mode, shape, module):
    a = random(*shape)
    pooled = Pooling(mode).pool(a, module)
    before = pooled.clone()
    a.zero_()
    assert torch.equal(pooled, before)


def test_a_function_of_the_users_gives_no_view_either():
    a = random(N, T, D)
    pooled = Pooling(lambda a: a[:, 0]).pool(a)
    before = pooled.clone()
    a.zero_()
    assert torch.equal(pooled, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(dtype):
    # 1 + 1/n is not representable in half precision: a mean that is kept in it would lose the ones
    a = torch.full((1, 4096, 1), 1.0).to(dtype)
    a[0, 0] = 2.0
    plain = a.double().mean(1)
    for mode in ("mean", "masked_mean"):
        torch.testing.assert_close(Pooling(mode).pool(a).double(), plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(Pooling().pool(a.reshape(1, 1, 64, 64)).double(), plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", [lambda a: a[:, 0] * 2, "nets:first_token"])
def test_a_function_or_its_path_pools(mode):
    a = random(N, T, D)
    wanted = a[:, 0] * 2 if callable(mode) else a[:, 0]
    assert torch.equal(Pooling(mode).pool(a), wanted)
    assert not Pooling(mode).liftable


@pytest.mark.parametrize(("mode", "near"), [("men", "mean"), ("max", ""), ("frist", "first"), ("masked-mean", "masked_mean")])
def test_an_unknown_mode_names_the_nearest(mode, near):
    with pytest.raises(LayerError, match=f"`pooling='{mode}'` is none of mean, first, last, masked_mean, flatten or .*{near}"):
        Pooling(mode)


def test_a_pooling_path_that_leads_nowhere_says_so():
    with pytest.raises(
        InterpError, match=r"`pooling='nets:frist_token'`: module 'nets' has no 'frist_token'. Did you mean 'first_token'"
    ):
        Pooling("nets:frist_token")


# --- lift -------------------------------------------------------------------------------------------------------------

SHAPES = [
    ((N, D), None, None),
    ((N, T, D), None, None),
    ((N, T, D), None, MASK),
    ((N, T, D), nn.Linear(D, D), MASK.bool()),
    ((N, D, T), nn.Conv1d(1, 1, 1), None),
    ((N, D, 2, 3), None, None),
    ((N, D, 2, 3, 2), None, MASK),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "module", "mask"), SHAPES)
def test_pooling_a_lifted_step_gives_the_step_back(mode, shape, module, mask):
    p, a, e = Pooling(mode), random(*shape), random(N, D)
    assert p.liftable
    step = p.lift(e, a, module, mask)
    assert step.shape == a.shape
    torch.testing.assert_close(p.pool(step.clone(), module, mask), e, rtol=1e-12, atol=1e-12)
    # and as a step from where the activation is
    moved = p.pool(a + step, module, mask) - p.pool(a, module, mask)
    torch.testing.assert_close(moved, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "module", "mask"), SHAPES)
def test_the_gradient_of_a_lifted_step_is_the_output_change_per_step(mode, shape, module, mask):
    # f(a + lift(e)): by finite differences, coordinate by coordinate of e
    p, a, w = Pooling(mode), random(*shape), random(*shape).sin()
    e = torch.zeros(N, D, dtype=torch.float64, requires_grad=True)

    def f(step):
        return (w * (a + p.lift(step, a, module, mask)) ** 2).flatten(1).sum(1)

    (gradient,) = torch.autograd.grad(f(e).sum(), e)
    h = 1e-6
    for k in range(D):
        unit = torch.zeros(N, D, dtype=torch.float64)
        unit[:, k] = h
        slope = (f(unit) - f(-unit)) / (2 * h)
        torch.testing.assert_close(gradient[:, k], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["first", "last", "masked_mean"])
def test_a_step_leaves_masked_tokens_alone(mode):
    step = Pooling(mode).lift(torch.ones(N, D), random(N, T, D), None, MASK)
    assert (step[MASK == 0] == 0).all()
    assert (step != 0).any()


@pytest.mark.parametrize("shape", [(N, D), (N, T, D), (N, D, 2, 3), (N, D, 2, 3, 2)])
def test_flattening_and_back_is_every_number_at_its_place(shape):
    a, pooling = random(*shape), Pooling("flatten")
    pooled = pooling.pool(a, nn.Conv2d(1, 1, 1))
    assert torch.equal(pooled, a.flatten(1))
    assert torch.equal(pooling.lift(pooled, a), a)
    pooled.zero_()
    assert bool((a != 0).all())  # no view


class Spatial(nn.Module):
    """A convolution, its flattened output as a layer of its own, and more layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh()), nn.Flatten()
        self.head = nn.Sequential(nn.Linear(2 * 16, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.flat(self.conv(image)))


def test_flattened_a_layer_measures_as_its_flattened_output_does():
    torch.manual_seed(0)
    x = torch.randn(200, 1, 4, 4)
    batch = {"image": x, "moo": (x[:, 0, 0, 0] > 0).long(), "grass": (x[:, 0, 3, 3] > 0).long()}
    variables = [Concept("moo"), Confounder("grass")]
    measures = ["decodability", "sensitivity", "mediation", "entanglement"]
    found = explain(Spatial(), [batch], variables, ["conv", "flat"], inputs="image", measures=measures, pooling="flatten")
    for measure in (found.decodability, found.sensitivity, found.mediation, found.entanglement):
        assert measure["conv"] == measure["flat"]


def test_a_mean_over_space_cannot_tell_places_apart_and_flattening_can():
    net = Spatial()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.conv[0].weight[0, 0, 1, 1] = 1.0  # the identity
        net.head[0].weight[0, 0], net.head[0].weight[0, 15] = 1.0, -1.0  # one corner for, the other against
        net.head[2].weight[1, 0] = 1.0
    g = torch.Generator().manual_seed(0)
    there = torch.randint(2, (400, 2), generator=g)
    x = torch.zeros(400, 1, 4, 4)
    x[:, 0, 0, 0], x[:, 0, 3, 3] = there[:, 0].float(), there[:, 1].float()
    batch, variables = {"image": x, "for": there[:, 0], "against": there[:, 1]}, [Concept("for"), Concept("against")]
    values = {}
    for pooling in ("mean", "flatten"):
        event = explain(net, [batch], variables, ["conv"], inputs="image", measures=["sensitivity"], pooling=pooling)
        values[pooling] = [event.sensitivity["conv"][v.name][""].value for v in variables]
    assert values["flatten"][0] > 0.1
    assert values["flatten"][1] < -0.1
    assert max(map(abs, values["mean"])) < 0.05
