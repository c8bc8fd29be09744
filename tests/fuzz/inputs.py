"""Generated tensors with what data have wrong with them, and a call that may not touch them."""

import torch
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

SEEDS = st.integers(0, 2**31)
FLOATS = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
FLAWS = st.sampled_from(
    ["none", "none", "constant column", "zero column", "copied column", "rank one", "mean of a million", "a billionth",
     "units of all sizes", "one row differs", "all zero", "repeated rows"]
)  # fmt: skip
MEMORY = st.sampled_from(["contiguous", "transposed", "every second", "expanded", "wants a gradient"])


def normal(n, d, seed):
    """float64 `[n, d]`."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flawed(n, d, flaw, seed, half=False):
    """`[n, d]`, float64, with one thing wrong with it; of 16 bits a million would be infinite."""
    x = normal(n, d, seed)
    if not d:
        return x
    if flaw == "constant column":
        x[:, -1] = 3.7
    elif flaw == "zero column":
        x[:, 0] = 0
    elif flaw == "copied column":
        x[:, -1] = x[:, 0]
    elif flaw == "rank one":
        x = x[:, :1] * x[:1]
    elif flaw == "mean of a million":
        x = x + (1e3 if half else 1e6)
    elif flaw == "a billionth":
        x = x * (1e-3 if half else 1e-9)
    elif flaw == "units of all sizes":
        x = x * torch.logspace(-2, 2, d, dtype=torch.float64) if half else x * torch.logspace(-6, 6, d, dtype=torch.float64)
    elif flaw == "one row differs":
        x = (torch.arange(n) == n // 2).double().unsqueeze(1).expand(n, d).clone()
    elif flaw == "all zero":
        x = torch.zeros_like(x)
    elif flaw == "repeated rows":
        x = x[torch.arange(n) // 3]
    return x


def laid_out(x, memory):
    """The same numbers in another layout."""
    if memory == "transposed":
        return x.mT.contiguous().mT
    if memory == "every second":
        return torch.stack([x, x + 1], 1)[:, 0]
    if memory == "expanded":
        return x[:1].expand(x.shape)  # all rows are the first
    if memory == "wants a gradient" and x.is_floating_point():
        return x.clone().requires_grad_()
    return x


@st.composite
def activations(draw, least=0, most=40, widest=7, dtypes=FLOATS, memory=MEMORY, flaws=FLAWS):
    """`[n, d]` of any floating dtype, layout and flaw."""
    n, d, dtype = draw(st.integers(least, most)), draw(st.integers(1, widest)), draw(dtypes)
    half = dtype in (torch.float16, torch.bfloat16)
    return laid_out(flawed(n, d, draw(flaws), draw(SEEDS), half).to(dtype), draw(memory))


@st.composite
def groups(draw, n, most=4):
    """Group of each of n rows, int64 in 0…k − 1, and k; some groups may be empty, or all but one."""
    k = draw(st.integers(1, most))
    form = draw(st.sampled_from(["any", "any", "one only", "one row apart"]))
    if form == "any":
        return torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(draw(SEEDS))), k
    only = torch.full((n,), draw(st.integers(0, k - 1)))
    if form == "one row apart" and n:
        only[0] = 0
    return only, k


def untouched(function, *arguments, **named):
    """The function's answer, and its arguments as they were, bit for bit."""
    given = [t for t in tree_leaves((arguments, named)) if isinstance(t, torch.Tensor)]
    before = [(t.detach().clone(), t._version, t.requires_grad) for t in given]
    out = function(*arguments, **named)
    for tensor, (copy, version, wants) in zip(given, before):
        assert tensor._version == version
        assert tensor.requires_grad == wants
        wide = torch.float64 if tensor.is_floating_point() else tensor.dtype
        assert torch.equal(*(t.to(wide).nan_to_num(0.125) for t in (tensor.detach(), copy)))
    return out


def outcome(refusal, function, *arguments):
    """The function's answer and None, or None and the refusal; any other exception is raised."""
    try:
        return untouched(function, *arguments), None
    except refusal as problem:
        return None, problem


def finite(*tensors):
    """All numbers of all tensors."""
    for tensor in tensors:
        assert bool(torch.isfinite(tensor).all()), tensor


def close(a, b, rtol=1e-9, atol=0.0):
    """As `torch.testing`, NaN equal to itself, dtypes and devices the same."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)
