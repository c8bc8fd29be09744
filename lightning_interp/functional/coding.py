"""From raw values of variables to the columns `z` of the equation, and to cells.

Binary variables become ±½, categorical ones sum-to-zero columns over equally weighted levels, continuous ones are centred and
divided by their standard deviation over the probe set. So a coefficient is a difference between two levels averaged over the
other variables, a deviation of a level from the mean of the levels, or a change per standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_interp.errors import VariableError
from lightning_interp.functional.unique import unique_rows

MAX_AUTO_LEVELS = 32
LONGEST = 1e15  # whole numbers from here on are printed in six digits


@dataclass(frozen=True)
class Factor:
    """How one variable is coded.

    Attributes:
        name: the variable.
        kind: "binary", "categorical" or "continuous".
        column: where its raw values stand in `values[:, column]`.
        levels: raw values of a discrete variable, in the order of their labels; empty for a continuous one.
        labels: the levels as printed.
        center: mean of a continuous variable over the probe set, in its own unit.
        scale: its standard deviation over the probe set, in its own unit.
    """

    name: str
    kind: str
    column: int
    levels: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0

    @property
    def discrete(self) -> bool:
        """Whether the variable has levels, and so makes cells."""
        return self.kind != "continuous"

    @property
    def width(self) -> int:
        """Number of columns in `z`."""
        return len(self.levels) - 1 if self.kind == "categorical" else 1

    def contrasts(self) -> Tensor:
        """Rows that turn coefficients into effects, `[m, width]`: one per level if categorical, else one."""
        if self.kind != "categorical":
            return torch.ones(1, 1, dtype=torch.float64)
        eye = torch.eye(self.width, dtype=torch.float64)
        return torch.cat([eye, -torch.ones(1, self.width, dtype=torch.float64)])

    def level_codes(self) -> Tensor:
        """The columns of `z` at each level, `[levels, width]`."""
        if self.kind == "binary":
            return torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
        return self.contrasts()

    def level_index(self, values: Tensor) -> Tensor:
        """Index of each value's level, int64 `[n]`."""
        if self.kind == "binary":
            return (values == self.levels[1]).long()
        levels = torch.tensor(self.levels, dtype=torch.float64, device=values.device)
        return (values.unsqueeze(1) == levels).to(torch.uint8).argmax(dim=1)

    def encode(self, values: Tensor) -> Tensor:
        """Raw values `[n]` to columns of `z`, `[n, width]`."""
        if self.discrete:
            return self.level_codes().to(values.device)[self.level_index(values)]
        return ((values - self.center) / self.scale).unsqueeze(1)


@dataclass(frozen=True)
class Design:
    """The coding of all measurable variables, and the names of the others with the reason.

    Attributes:
        factors: the variables with more than one value, in the user's order.
        unmeasurable: {name: why} for the others.
    """

    factors: tuple[Factor, ...]
    unmeasurable: Mapping[str, str]

    @property
    def discrete(self) -> tuple[Factor, ...]:
        """The binary and categorical variables, which make the cells."""
        return tuple(f for f in self.factors if f.discrete)

    @property
    def width(self) -> int:
        """Number of columns in `z`, without the intercept."""
        return sum(f.width for f in self.factors)

    def blocks(self) -> dict[str, slice]:
        """{variable: its columns in `z`}."""
        out, start = {}, 0
        for f in self.factors:
            out[f.name] = slice(start, start + f.width)
            start += f.width
        return out

    def encode(self, values: Tensor) -> Tensor:
        """Raw values `[n, p]` to `z` `[n, q]`."""
        if not self.factors:
            return values.new_zeros(len(values), 0)
        return torch.cat([f.encode(values[:, f.column]) for f in self.factors], dim=1)

    def products(self, z: Tensor) -> Tensor:
        """All two-way products of columns of different variables, `[n, m]`."""
        blocks = list(self.blocks().values())
        pairs = [
            (z[:, a].unsqueeze(2) * z[:, b].unsqueeze(1)).flatten(1) for i, a in enumerate(blocks) for b in blocks[i + 1 :]
        ]
        return torch.cat(pairs, dim=1) if pairs else z.new_zeros(len(z), 0)

    def cells(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The joint settings of the discrete variables that occur.

        Args:
            values: raw values `[n, p]`.

        Returns:
            Level indices of the cells, int64 `[k, discrete]` in lexicographic order, and each row's cell, int64 `[n]`.
        """
        if not self.discrete:
            return torch.zeros(1, 0, dtype=torch.int64), torch.zeros(len(values), dtype=torch.int64)
        index = torch.stack([f.level_index(values[:, f.column]) for f in self.discrete], dim=1)
        return unique_rows(index)

    def cell_names(self, cells: Tensor) -> list[str]:
        """Names such as `digit=1,grass=0` for level indices `[k, discrete]`."""
        return [",".join(f"{f.name}={f.labels[i]}" for f, i in zip(self.discrete, row)) or "all" for row in cells.tolist()]


def infer_kind(levels: Tensor, named: bool) -> str:
    """What a variable of unstated kind is taken for.

    Args:
        levels: its distinct raw values.
        named: whether the values are names (strings).

    Returns:
        "binary" for two values; "categorical" for names, and for at most 32 distinct whole numbers; else "continuous".
    """
    if len(levels) == 2:
        return "binary"
    whole = bool((levels == levels.round()).all())
    return "categorical" if named or (whole and len(levels) <= MAX_AUTO_LEVELS) else "continuous"


def is_discrete(kind: str, values: Tensor, named: bool) -> bool:
    """Whether a variable of stated or open kind has levels.

    Args:
        kind: as declared; "auto" is decided from the values.
        values: raw values `[n]`.
        named: whether the values are names (strings).
    """
    return (infer_kind(torch.unique(values), named) if kind == "auto" else kind) != "continuous"


def _label(value: float) -> str:
    return str(int(value)) if abs(value) < LONGEST and value == int(value) else f"{value:g}"


def _labels(levels: Sequence[float]) -> list[str]:
    # Six digits to read; all of them where two levels would be printed alike.
    short = [_label(v) for v in levels]
    return short if len(set(short)) == len(short) else [repr(v) for v in levels]


def _center_and_scale(x: Tensor, count: Tensor) -> tuple[float, float]:
    # In units of the largest value, a power of two that costs no digit: no square of it can vanish or overflow.
    unit = math.ldexp(1.0, math.frexp(float(x.abs().max()))[1] - 1)
    x, total = x / unit, count.sum()
    center = float((count * x).sum() / total)
    return center * unit, math.sqrt(float((count * (x - center) ** 2).sum() / total)) * unit


def code(
    values: Tensor,
    count: Tensor,
    names: Sequence[str],
    kinds: Sequence[str],
    level_names: Mapping[str, Mapping[float, str]] | None = None,
) -> Design:
    """Decide the coding from the values seen.

    Args:
        values: raw values `[r, p]`, float64.
        count: how many samples each row stands for, `[r]`.
        names: the variables' names, `p` of them.
        kinds: "auto", "binary", "categorical" or "continuous", `p` of them.
        level_names: {variable: {raw value: printed level}} for variables whose values were strings.

    Returns:
        The `Design`; a variable with one value only is listed as unmeasurable.

    Raises:
        VariableError: a variable declared binary has more than two values.
    """
    factors, unmeasurable = [], {}
    for column, (name, kind) in enumerate(zip(names, kinds)):
        x = values[:, column]
        levels = torch.unique(x)
        printed = (level_names or {}).get(name, {})
        if len(levels) < 2:
            shown = ", ".join(printed.get(v, _label(v)) for v in levels.tolist()) or "nothing"
            unmeasurable[name] = f"'{name}' is constant over the probe set (always {shown}): not measurable"
            continue
        kind = infer_kind(levels, bool(printed)) if kind == "auto" else kind
        if kind == "binary" and len(levels) > 2:
            some = ", ".join(printed.get(v, _label(v)) for v in levels[:4].tolist())
            raise VariableError(
                f"variable '{name}': `kind='binary'` expects two values, got {len(levels)} ({some}, …). "
                "Use kind='categorical' or kind='continuous'."
            )
        if kind == "continuous":
            if printed:
                raise VariableError(f"variable '{name}': `kind='continuous'` expects numbers, got text labels.")
            center, scale = _center_and_scale(x, count)
            if scale == 0:
                unmeasurable[name] = f"'{name}' differs by less than a number can hold: not measurable"
                continue
            factors.append(Factor(name, kind, column, center=center, scale=scale))
        else:
            # Names are ordered as names: the raw value of a name is a hash, which means nothing.
            ordered = sorted(levels.tolist(), key=lambda v: (printed.get(v, ""), v))
            labels = tuple(printed.get(v, shown) for v, shown in zip(ordered, _labels(ordered)))
            factors.append(Factor(name, kind, column, tuple(ordered), labels))
    return Design(tuple(factors), unmeasurable)
