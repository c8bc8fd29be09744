"""`sampling`, `unique`, `groups` and `outputs` on generated batches."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fuzz.inputs import FLAWS, SEEDS, activations, close, finite, flawed, groups, normal, outcome, untouched
from lightning_interp.errors import LabelError, LayerError
from lightning_interp.functional.groups import GroupAccuracy, group_accuracy
from lightning_interp.functional.outputs import Explained, explain_output, level_spread, magnitude
from lightning_interp.functional.sampling import content_key, digest, id_key, mix, uniform
from lightning_interp.functional.unique import unique_rows

DTYPES = st.sampled_from(
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32, torch.int16,
     torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128]
)  # fmt: skip
LAYOUTS = st.sampled_from(["contiguous", "transposed", "every second", "expanded", "wants a gradient"])
INT64 = st.integers(-(2**63), 2**63 - 1)
TASKS = (None, "binary", "multiclass", "multilabel", "regression")


@st.composite
def batches(draw):
    """First inputs `[n, ...]` of any dtype, shape and layout."""
    n = draw(st.integers(0, 12))
    shape = (n, *draw(st.lists(st.integers(0, 5), max_size=3)))
    if draw(st.booleans()) and len(shape) > 1:
        shape = (n, 1500, *shape[2:])  # read sparsely
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(draw(SEEDS))) * 30).round()
    dtype = draw(DTYPES)
    x = x.to(dtype) if dtype.is_signed else x.abs().to(dtype)
    layout = draw(LAYOUTS)
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every second":
        return torch.stack([x, x], 1)[:, 0]
    if layout == "expanded" and n:
        return x[:1].expand(x.shape)
    if layout == "wants a gradient" and dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return x.requires_grad_()
    return x


@given(batches(), SEEDS)
def test_a_content_key_is_the_samples_own(x, seed):
    key = untouched(content_key, x)
    assert key.shape == (len(x),)
    assert key.dtype == torch.int64
    assert not key.requires_grad
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).tolist()
    if order:
        plain = x.detach().contiguous()
        each = torch.cat([content_key(plain[i : i + 1]) for i in order])
        assert torch.equal(each, key[torch.tensor(order)])
    assert torch.equal(untouched(id_key, x), key)


@given(st.lists(st.text(max_size=5), max_size=20), st.lists(INT64, max_size=20))
def test_ids_have_one_key_each(texts, numbers):
    for ids, key in ((texts, id_key(texts)), (numbers, untouched(id_key, torch.tensor(numbers, dtype=torch.int64)))):
        assert key.shape == (len(ids),)
        assert len(set(ids)) == len(set(key.tolist()))


@given(st.lists(INT64, max_size=30), st.integers(0, 3), st.integers(0, 30), SEEDS)
def test_a_digest_is_a_sum_over_samples(keys, p, at, seed):
    key = torch.tensor(keys, dtype=torch.int64)
    values = flawed(len(keys), p, "repeated rows", seed)
    whole = untouched(digest, key, values)
    assert whole.dtype == torch.int64
    assert torch.equal(whole, digest(key[:at], values[:at]) + digest(key[at:], values[at:]))
    assert torch.equal(whole, digest(key.flip(0), values.flip(0)))
    if len(keys) and p:
        other = values.clone()
        other[0, 0] += 1
        assert not torch.equal(whole, digest(key, other))
    assert torch.equal(untouched(mix, key), torch.cat([mix(k.unsqueeze(0)) for k in key]) if len(key) else key)


@given(st.lists(INT64, max_size=30), st.integers(-(2**80), 2**80), st.integers(0, 2**40))
def test_uniform_numbers_are_in_range_for_any_seed(keys, seed, stream):
    u = untouched(uniform, torch.tensor(keys, dtype=torch.int64), seed, stream)
    assert u.dtype == torch.float64
    assert bool(((u >= 0) & (u < 1)).all())


@given(activations(0, 20, 4, dtypes=st.just(torch.float64)), st.booleans())
def test_distinct_rows_rebuild_the_table(x, whole):
    x = x.detach()
    x = x.round().clamp(-(2.0**62), 2.0**62).long() if whole else torch.where(x > 1, torch.nan, x)
    rows, index = untouched(unique_rows, x)
    assert torch.equal(rows[index].view(torch.int64), x.contiguous().view(torch.int64))
    assert len({tuple(r) for r in rows.view(torch.int64).tolist()}) == len(rows)


@given(st.integers(0, 30), st.data())
def test_the_worst_group_is_the_one_with_the_least_accuracy(n, data):
    group, k = data.draw(groups(n))
    dtype = data.draw(st.sampled_from([torch.bool, torch.int64, torch.float32, torch.float64, torch.bfloat16]))
    scored = normal(n, 1, data.draw(SEEDS))[:, 0] > 0
    correct = scored & (normal(n, 1, data.draw(SEEDS))[:, 0] > 0)
    got = untouched(group_accuracy, correct.to(dtype), scored.to(dtype), group, k)
    assert isinstance(got, GroupAccuracy)
    expected = [float(correct[group == g].sum()) / max(1, int(scored[group == g].sum())) for g in range(k)]
    known = [e for g, e in enumerate(expected) if scored[group == g].any()]
    for g in range(k):
        assert math.isnan(got.accuracy[g]) if not scored[group == g].any() else float(got.accuracy[g]) == expected[g]
    if not known:
        assert got.worst == -1
        assert math.isnan(got.gap)
    else:
        assert expected[got.worst] == min(known)
        assert abs(got.gap - (max(known) - min(known))) < 1e-12


@st.composite
def targets(draw, n, c):
    """A target of any dtype, of the output's shape, of one class per sample, of the wrong length, or none."""
    form = draw(st.sampled_from(["none", "class", "class", "column", "several", "too long", "odd"]))
    if form == "none":
        return None
    shape = {"class": (n,), "column": (n, 1), "several": (n, c), "too long": (n + 1,), "odd": (n, c + 1)}[form]
    dtype = draw(st.sampled_from([torch.int64, torch.bool, torch.uint8, torch.float32, torch.float16, torch.float64]))
    seed = draw(SEEDS)
    if dtype.is_floating_point and draw(st.booleans()):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    most = 2 if dtype == torch.bool or dtype.is_floating_point else max(1, c)
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.integers(0, 12), st.integers(0, 4), st.data())
def test_an_output_is_explained_or_refused_in_our_words(n, c, data):
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]))
    form = data.draw(st.sampled_from(["[n, c]", "[n, c]", "[n]", "[]", "[n, c, 2]"]))
    raw = flawed(n, c, data.draw(FLAWS), data.draw(SEEDS), dtype in (torch.float16, torch.bfloat16)).to(dtype)
    if form == "[n]":
        raw = raw[:, 0] if c else torch.zeros(n, dtype=dtype)
    elif form == "[]":
        raw = raw.sum().to(dtype)
    elif form == "[n, c, 2]":
        raw = torch.stack([raw, raw], 2)
    target = data.draw(targets(n, c))
    task = data.draw(st.sampled_from(TASKS))
    got, problem = outcome((LayerError, LabelError), explain_output, raw, target, task)
    if isinstance(problem, LayerError):
        assert "`output`" in str(problem)
        assert raw.ndim not in (1, 2) or not raw.is_floating_point() or (raw.ndim == 2 and raw.shape[1] == 0)
        return
    if problem is not None:
        assert "`target`" in str(problem)
        assert target.numel() != (raw.numel() if task == "multilabel" else n)
        return
    assert isinstance(got, Explained)
    finite(got.output)
    assert got.output.dtype == torch.float64
    assert got.task in TASKS[1:]
    assert got.task == task or task is None
    assert len(got.output) == n
    o = raw.double() if raw.ndim == 2 else raw.double().unsqueeze(1)
    if got.task == "multiclass" and o.shape[1] > 1:
        close(got.output, o - o.mean(1, keepdim=True))
    elif got.task == "binary" and o.shape[1] == 2:
        close(got.output[:, 0], o[:, 1] - o[:, 0])
    else:
        assert got.task != "regression" or torch.equal(got.output, o)
    if got.correct is not None:
        assert target is not None
        assert got.correct.shape == (n,)
        assert bool(((got.correct >= 0) & (got.correct <= 1)).all())
    else:
        assert target is None or got.task == "regression"


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from(TASKS[1:]), SEEDS)
def test_one_number_for_several_outputs_and_levels(levels, c, task, seed):
    effect = normal(levels, c, seed)
    one = untouched(magnitude, effect[0], task)
    if c == 1:
        assert one == float(effect[0, 0])
    else:
        assert abs(one**2 - (2 if task == "multiclass" else 1) * float((effect[0] ** 2).sum())) < 1e-9
    got = untouched(level_spread, effect)
    expected = effect[0] if levels == 1 else 2 * ((effect - effect.mean(0)) ** 2).mean(0).sqrt()
    close(got, expected, 1e-9, 1e-12)
    if levels == 2:
        close(got, (effect[1] - effect[0]).abs(), 1e-9, 1e-12)
