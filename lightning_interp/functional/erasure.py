"""Erasure: the smallest affine edit after which no linear function of the activation tells a variable.

LEACE (Belrose et al. 2023, "LEACE: Perfect linear concept erasure in closed form", Theorems 4.2 and 4.3). Written as the
oblique projection that it is: with Q a basis of the column space of Σ_hz, h' = h − Q(Q'Σ⁻¹Q)⁻¹Q'Σ⁻¹(h − mean). Two facts
follow. Adding λQQ' to Σ leaves it as it is (Woodbury), and puts Q in Σ's range, so that a singular Σ does no harm; and *any*
positive definite Σ guards, so that a damped one costs a slightly larger edit and no guardedness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.errors import VariableError
from lightning_interp.functional.moments import Moments

DEPENDENT = 1e-10  # relative singular value under which columns of Σ_hz count as dependent, or as zero
ROUNDING = 1e-14  # of the mean activation: a covariance with z below it is none
CONDITIONED = 1e-9  # least pivot, in units of the largest variance, at which Cholesky's factor is as good as eigenvalues
TOLD_APART = 1e-8  # share of the variance that the given variables must leave


class Eraser(NamedTuple):
    """h' = h − ((h − mean) @ read) @ write, an affine map that is idempotent: `write @ read` is the identity.

    Attributes:
        mean: what stays as it is, `[d]`.
        read: how the variable is read from the activation, `[d, r]`.
        write: the orthonormal directions that it is taken out along, `[r, d]`.
    """

    mean: Tensor
    read: Tensor
    write: Tensor

    @property
    def rank(self) -> int:
        """r, the number of directions taken out."""
        return self.read.shape[1]

    def step(self, h: Tensor) -> Tensor:
        """What is added to activations `[n, d]`: h' − h."""
        return -((h - self.mean) @ self.read) @ self.write

    def to(self, like: Tensor) -> Eraser:
        """The same on the device of `like`."""
        return Eraser(*(part.to(like.device) for part in self))

    def __call__(self, h: Tensor) -> Tensor:
        """Activations `[n, d]` with the variable erased, in their own dtype; worked out in float64."""
        return (h.double() + self.step(h.double())).to(h.dtype)


class LowRank:
    """A covariance R'R known by its rows alone, for layers with more units than rows.

    Args:
        rows: R, `[k, d]`.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows.double()
        self._factor: dict[float, Tensor] = {}

    def __len__(self) -> int:
        return self.rows.shape[1]

    @property
    def trace(self) -> Tensor:
        """The activation's variance, summed over units."""
        return (self.rows**2).sum()

    def solve(self, b: Tensor, alpha: float) -> Tensor:
        """(R'R + αI)⁻¹b by way of RR' (Woodbury), `[d, m]`, α over 0."""
        if alpha not in self._factor:
            products = self.rows @ self.rows.T
            products.diagonal().add_(alpha)
            self._factor[alpha] = torch.linalg.cholesky(products)
        return (b - self.rows.T @ torch.cholesky_solve(self.rows @ b, self._factor[alpha])) / alpha


class Second(NamedTuple):
    """Second moments of z and h under one set of weights.

    Attributes:
        hh: covariance of the activation, `[d, d]`; of a wide layer its diagonal only, `[d]`.
        zh: of z with it, `[q, d]`.
        zz: of z, `[q, q]`.
        h: mean activation, `[d]`.
        z: mean of z, `[q]`.
    """

    hh: Tensor
    zh: Tensor
    zz: Tensor
    h: Tensor
    z: Tensor


def leace(hh: Tensor | LowRank, hz: Tensor, mean: Tensor, ridge: float = 0.0) -> Eraser:
    """The smallest affine edit (in every norm) that makes the covariance of activation and z zero.

    Args:
        hh: covariance of the activation, `[d, d]`; may be singular: directions whose variance is under d·ε of the largest are
            left out. One of low rank needs a ridge.
        hz: covariance of the activation with z, `[d, k]`, z of order one; columns may depend on each other or be zero.
        mean: mean activation, `[d]`.
        ridge: added to the diagonal of `hh`, in units of its mean eigenvalue, 0 or more: fewer rows than units make a noisy
            inverse. The covariance with z becomes zero whatever the ridge; the edit is the smallest at 0.

    Returns:
        A float64 `Eraser`; of rank 0 where there is nothing to erase.
    """
    hz, mean = hz.double(), mean.double()
    size = hh.trace if isinstance(hh, LowRank) else hh.double().diagonal().sum()
    q = _basis(hz, max(DEPENDENT * float(size.clamp_min(0).sqrt()), ROUNDING * float(mean.norm())))
    if q.shape[1] == 0:
        return Eraser(mean, q, q.T)
    if isinstance(hh, LowRank):
        solved = hh.solve(q, float(ridge * size / len(hh)))
    else:
        hh = hh.double()
        damped = (hh + hh.T) / 2 + size * (q @ q.T)
        damped.diagonal().add_(ridge * size / len(hh))
        solved = _solve(damped, q, ridge > 0)
    return Eraser(mean, solved @ torch.linalg.inv(q.T @ solved), q.T.clone())


def random_leace(
    hh: Tensor | LowRank, mean: Tensor, rows: Tensor, rank: int, generator: torch.Generator, ridge: float = 0.0
) -> Eraser:
    """Erase random labels: the control for `leace`, a random subspace of a given rank.

    Its directions are covariances of the activation with columns of random numbers, so they are drawn from the activation's
    own covariance, and the edit is as large as any of that rank, in units of that covariance: what erasing something takes that
    means nothing.

    Args:
        hh: as in `leace`.
        mean: as there.
        rows: activations `[n, d]`.
        rank: directions to take out.
        generator: draws one number per row and direction.
        ridge: as in `leace`.
    """
    labels = torch.randn(len(rows), rank, generator=generator, dtype=torch.float64).to(rows.device)
    rows = rows.double() - rows.double().mean(0)
    return leace(hh, rows.T @ labels / max(1, len(rows)) ** 0.5, mean, ridge)


def _basis(hz: Tensor, least: float) -> Tensor:
    kept = hz[:, hz.norm(dim=0) > least]
    if kept.shape[1] == 0:
        return kept
    u, s, _ = torch.linalg.svd(kept / kept.norm(dim=0), full_matrices=False)
    return u[:, s > DEPENDENT * s[0]]


def _solve(a: Tensor, b: Tensor, definite: bool) -> Tensor:
    live = a.diagonal() > 0
    if not bool(live.all()):  # units that never vary, as of a ReLU that is off: nothing is read from them
        out = torch.zeros_like(b)
        out[live] = _solve(a[live][:, live], b[live], definite)
        return out
    factor, info = torch.linalg.cholesky_ex(a)
    pivots = factor.diagonal() ** 2
    if not int(info) and (definite or bool(pivots.min() > CONDITIONED * a.diagonal().max())):
        return torch.cholesky_solve(b, factor)
    values, vectors = torch.linalg.eigh(a)
    kept = values > values[-1] * len(a) * torch.finfo(a.dtype).eps
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1), 0)
    return vectors @ (inverse.unsqueeze(1) * (vectors.T @ b))


def balanced(m: Moments, codes: Tensor) -> Second:
    """Second moments with every cell weighted alike; within the cells the covariance of the activation is the pooled one.

    Args:
        m: moments whose group 0 is all rows, and whose others are the cells, none of them empty.
        codes: z in each cell, `[cells, q]`.
    """
    count, cells = m.count[1:], m.hidden[1:]
    h, z = cells.mean(0), codes.mean(0)
    between, coded = cells - h, codes - z
    about = cells - m.hidden[0]
    k = len(codes)
    if m.gram.ndim == 1:
        hh = (m.gram - (count.unsqueeze(1) * about**2).sum(0)) / count.sum() + (between**2).sum(0) / k
    else:
        hh = (m.gram - about.T @ (count.unsqueeze(1) * about)) / count.sum() + between.T @ between / k
    return Second(hh, coded.T @ between / k, coded.T @ coded / k, h, z)


def natural(m: Moments, codes: Tensor) -> Second:
    """Second moments with every row weighted alike; the continuous variables' columns come after those of the codes.

    Args:
        m: moments whose group 0 is all rows, and whose others are the cells; cells may be empty.
        codes: z in each cell, `[cells, q]`.
    """
    share = (m.count[1:] / m.count[0]).unsqueeze(1)
    x = slice(0, m.columns)
    z = torch.cat([(share * codes).sum(0), m.mean[0, x]])
    coded = share * (codes - z[: codes.shape[1]])
    both = coded.T @ (m.mean[1:] - m.mean[0])  # of the codes with [x, h]
    own = m.cross[0] / m.count[0]
    zz = torch.cat([torch.cat([coded.T @ codes, both[:, x]], 1), torch.cat([both[:, x].T, own[:, x]], 1)])
    zh = torch.cat([both[:, m.columns :], own[:, m.columns :]])
    return Second(m.gram / m.count[0], zh, zz, m.hidden[0], z)


def net(s: Second, confounder: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The confounder's columns less what is linear in the given ones.

    Args:
        s: second moments.
        confounder: places of its columns in z; the others are given.

    Returns:
        Their variance `[w]`, and their covariance with the activation `[w, d]`, whose rows span those of the multivariate
        pattern.

    Raises:
        VariableError: the given variables leave nothing of one of its columns.
    """
    own = torch.tensor(list(confounder), device=s.zz.device)
    rest = torch.tensor([j for j in range(len(s.zz)) if j not in set(confounder)], dtype=torch.int64, device=s.zz.device)
    on = s.zz[own][:, rest] @ _inverse(s.zz[rest][:, rest])
    left = s.zz[own][:, own] - on @ s.zz[rest][:, own]
    scale = s.zz[own, own].sqrt()
    if not bool((scale > 0).all()) or float(torch.linalg.eigvalsh(left / scale.outer(scale))[0]) < TOLD_APART:
        raise VariableError("the confounder cannot be told apart from the given variables: it is a linear function of them")
    return left.diagonal(), s.zh[own] - on @ s.zh[rest]


def _inverse(zz: Tensor) -> Tensor:
    # Pseudo-inverse in units of the columns' own spread: given variables may be functions of each other.
    scale = zz.diagonal().clamp_min(0).sqrt()
    safe = torch.where(scale > 0, scale, 1)
    return torch.linalg.pinv(zz / safe.outer(safe), hermitian=True, rtol=TOLD_APART) / safe.outer(safe)


def second(m: Moments, codes: Tensor, weights: str) -> Second:
    """Second moments under "balanced" or "natural" weights, see `balanced` and `natural`."""
    return (balanced if weights == "balanced" else natural)(m, codes)


def weighted_leace(
    m: Moments, codes: Tensor, confounder: Sequence[int], weights: str, ridge: float = 0.0, hh: LowRank | None = None
) -> Eraser:
    """Erase a variable under "balanced" weights, see `balanced_leace`, or "natural" ones, see `partial_leace`."""
    return (balanced_leace if weights == "balanced" else partial_leace)(m, codes, confounder, ridge, hh)


def balanced_leace(
    m: Moments, codes: Tensor, confounder: Sequence[int], ridge: float = 0.0, hh: LowRank | None = None
) -> Eraser:
    """Erase a variable where every cell of it and the given variables is weighted alike.

    So the eraser takes out the variable and not what travels with it: under natural weights, and at an agreement of .9,
    erasing the colour takes 73 % of the shape with it. Where a cell is empty or a variable continuous: `partial_leace`.

    Args:
        m: moments whose group 0 is all rows, and whose others are the cells.
        codes: coded discrete variables in each cell, `[cells, q]`.
        confounder: places of the confounder's columns in z, the codes followed by the continuous variables.
        ridge: as in `leace`.
        hh: covariance of the activation of a wide layer, whose moments have its diagonal only.

    Raises:
        VariableError: the given variables leave nothing of the confounder.
    """
    if m.columns or bool((m.count[1:] <= 0).any()):
        return partial_leace(m, codes, confounder, ridge, hh)
    s = balanced(m, codes)
    return leace(s.hh if hh is None else hh, net(s, confounder)[1].T, s.h, ridge)


def partial_leace(
    m: Moments, codes: Tensor, confounder: Sequence[int], ridge: float = 0.0, hh: LowRank | None = None
) -> Eraser:
    """Erase what a variable adds to the activation, the given ones held fixed, every row weighted alike.

    Σ_hz is the multivariate pattern, Σ_hh the residual covariance of the regression on all variables: afterwards the pattern
    of the variable is zero. What stays as it is, is the activation that the regression expects at codes of zero.

    Args:
        m: as for `balanced_leace`; cells may be empty.
        codes: as there.
        confounder: as there.
        ridge: as in `leace`.
        hh: as there, of what the regression leaves.

    Raises:
        VariableError: the given variables leave nothing of the confounder.
    """
    s = natural(m, codes)
    hz = net(s, confounder)[1].T
    b = slopes(s)
    q = codes.shape[1]
    return leace(s.hh - s.zh.T @ b if hh is None else hh, hz, s.h - s.z[:q] @ b[:q], ridge)


def slopes(s: Second) -> Tensor:
    """The regression of the activation on z, `[q, d]`."""
    return _inverse(s.zz) @ s.zh


def erased(m: Moments, eraser: Eraser) -> Moments:
    """The moments of the erased activations: nothing but the moments is needed."""
    q = m.columns
    keep = torch.eye(len(m.gram), dtype=m.gram.dtype, device=m.gram.device) - eraser.read @ eraser.write
    hidden = torch.where((m.count > 0).unsqueeze(1), eraser(m.hidden), m.hidden)  # an empty group's mean stays zero
    mean = torch.cat([m.mean[:, :q], hidden], dim=1)
    cross = torch.cat([m.cross[:, :, :q], m.cross[:, :, q:] @ keep], dim=2)
    return Moments(m.count, mean, cross, keep.T @ m.gram @ keep)
