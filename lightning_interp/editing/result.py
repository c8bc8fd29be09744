"""`Edit`: what was done to a model's weights, and how to take it back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_interp.errors import InterpError
from lightning_interp.functional.erasure import Eraser


class Edit:
    """An edit of a model's weights.

    Attributes:
        certificate: what was done and measured, in plain types; `write_certificate` puts it beside a checkpoint.
        eraser: what is taken out of the activation, float64.
        modules: names of the modules whose weights changed.
    """

    def __init__(self, eraser: Eraser, modules: Sequence[str], changes: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        self.eraser = eraser
        self.modules = tuple(modules)
        self.certificate: dict[str, Any] = {}
        self._before = [(p, p.detach().clone()) for p, _ in changes]
        self._after = [new for _, new in changes]
        self._write(self._after)

    def undo(self) -> None:
        """Put the weights back, bit for bit.

        Raises:
            InterpError: they are no longer what the edit made of them (another edit, training, a second `undo`); nothing is
                changed then.
        """
        for (p, _), new in zip(self._before, self._after):
            if p.dtype != new.dtype or p.shape != new.shape or not _equal(p.detach(), new.to(p.device)):
                raise InterpError(
                    f"the weights of {', '.join(map(repr, self.modules))} are no longer what this edit made of them: "
                    "`undo` would lose what came after. Undo later edits first."
                )
        self._write([old for _, old in self._before])

    def _write(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for (p, _), value in zip(self._before, values):
                p.copy_(value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.eraser.rank}, in {', '.join(self.modules)})"


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
