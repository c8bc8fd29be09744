"""Numbers that belong to a sample: the same in any order, any split, any padding."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_interp.functional.sampling import content_key, id_key, mix, uniform

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = (1 << 64) - 1


def plain_mix(x: int) -> int:
    """SplitMix64's finaliser in Python's own integers."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    x ^= x >> 31
    return x - (1 << 64) if x >= 1 << 63 else x


@given(st.lists(INT64, min_size=1, max_size=20))
def test_mix_is_splitmix64s_finaliser(xs: list[int]):
    assert mix(torch.tensor(xs)).tolist() == [plain_mix(x) for x in xs]


@given(st.lists(INT64, min_size=2, max_size=30), st.integers(-5, 2**40), st.integers(0, 9), st.randoms())
def test_uniform_is_the_same_in_any_order_and_split(keys, seed, stream, random):
    whole = dict(zip(keys, uniform(torch.tensor(keys), seed, stream).tolist()))
    shuffled = random.sample(keys, len(keys))
    cut = random.randint(1, len(keys) - 1)
    parts = [uniform(torch.tensor(part), seed, stream) for part in (shuffled[:cut], shuffled[cut:])]
    assert torch.cat(parts).tolist() == [whole[k] for k in shuffled]


@pytest.mark.parametrize("seed", [0, 1, 20_000, -3])
@pytest.mark.parametrize("stream", [0, 1, 2, 7])
def test_uniform_passes_a_kolmogorov_smirnov_test(seed, stream):
    u = uniform(id_key(torch.arange(20_000)), seed, stream)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_uniform_of_raw_counters_is_uniform_too():
    u = uniform(torch.arange(20_000), 0, 0)
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3


def test_streams_and_seeds_and_neighbours_are_uncorrelated():
    key = id_key(torch.arange(10_000))
    numbers = [uniform(key, seed, stream).numpy() for seed in range(3) for stream in range(4)]
    numbers.append(np.roll(numbers[0], 1))
    correlation = np.corrcoef(numbers) - np.eye(len(numbers))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(10_000)


@pytest.mark.parametrize("n", [100, 1_797, 50_000])
def test_folds_are_balanced_and_independent_of_the_kept_rows(n):
    key = id_key([f"img_{i:05d}.png" for i in range(n)])
    first, kept = uniform(key, 0, 0) < 0.5, uniform(key, 0, 1) < 0.5
    assert abs(int(first.sum()) - n / 2) < 4 * np.sqrt(n) / 2
    assert abs(int((first & kept).sum()) - n / 4) < 4 * np.sqrt(n * 3 / 16)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8,
          torch.complex64]  # fmt: skip


def rows(n: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(1, 200, (n, width), generator=generator)
    return x.to(dtype) if not dtype.is_floating_point else (x / 37 - 2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_content_key_does_not_depend_on_who_else_is_in_the_batch(dtype):
    x = rows(12, 40, dtype).reshape(12, 5, 8)
    whole = content_key(x)
    assert torch.equal(content_key(x[torch.arange(11, -1, -1)]).flip(0), whole)
    assert torch.equal(torch.cat([content_key(x[:5]), content_key(x[5:])]), whole)
    assert torch.equal(content_key(x.transpose(1, 2).contiguous().transpose(1, 2)), whole)  # nor on the strides


@pytest.mark.parametrize("dtype", DTYPES)
def test_content_key_differs_where_one_element_differs(dtype):
    x = rows(1, 60, dtype).repeat(61, 1)
    x[torch.arange(60), torch.arange(60)] *= 3
    assert len(torch.unique(content_key(x))) == 61


def test_content_key_sees_the_order_of_elements():
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0]])
    assert len(torch.unique(content_key(x))) == 3


@given(st.integers(1, 50), st.integers(0, 60), st.integers(0, 2**31))
def test_zero_padding_leaves_the_content_key_alone(length, padding, seed):
    x = rows(4, length, torch.float32, seed)
    padded = torch.cat([x, torch.zeros(4, padding)], dim=1)
    tokens = rows(4, length, torch.int64, seed)
    assert torch.equal(content_key(padded), content_key(x))
    assert torch.equal(content_key(torch.nn.functional.pad(tokens, (0, padding))), content_key(tokens))


@pytest.mark.parametrize("length", [1_000, 1_024, 1_030, 5_000])
@pytest.mark.parametrize("padding", [1, 100, 3_000])
def test_zero_padding_leaves_a_long_samples_content_key_alone(length, padding):
    x = rows(4, length, torch.float32)
    assert torch.equal(content_key(torch.nn.functional.pad(x, (0, padding))), content_key(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bool])
def test_content_keys_of_different_binary_images_do_not_collide(dtype):
    images = torch.unique(torch.randint(0, 2, (3_000, 64), generator=torch.Generator().manual_seed(1)), dim=0)
    assert len(torch.unique(content_key(images.to(dtype)))) == len(images)


def test_an_empty_batch_has_no_keys():
    assert content_key(torch.empty(0, 3)).shape == (0,)
    assert id_key(torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_large_inputs_are_read_sparsely_but_still_tell_samples_apart():
    x = torch.rand(50, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    assert len(torch.unique(content_key(x))) == 50


@given(st.lists(INT64, min_size=1, max_size=30, unique=True))
def test_different_integer_ids_have_different_keys(ids):
    key = id_key(torch.tensor(ids))
    assert len(torch.unique(key)) == len(ids)
    assert torch.equal(id_key(torch.tensor(ids).unsqueeze(1)), key)


def test_integer_ids_have_the_same_key_in_any_width():
    assert torch.equal(id_key(torch.arange(9, dtype=torch.int32)), id_key(torch.arange(9)))


@given(st.lists(st.text(max_size=8), min_size=1, max_size=30, unique=True))
def test_different_string_ids_have_different_keys_that_do_not_depend_on_the_batch(ids):
    key = id_key(ids)
    assert key.dtype == torch.int64
    assert len(torch.unique(key)) == len(ids)
    assert torch.equal(key, torch.cat([id_key([i]) for i in ids]))


def test_string_keys_are_fixed_across_runs():
    assert id_key(["a", "b"]).tolist() == id_key(("a", "b")).tolist()
    digest = hashlib.blake2b(b"a", digest_size=8).digest()
    assert id_key(["a"]).item() == int.from_bytes(digest, "little", signed=True)
