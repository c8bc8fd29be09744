"""The top-k sparse autoencoder.

Makhzani & Frey 2013, "k-Sparse Autoencoders"; Gao et al. 2024, "Scaling and evaluating sparse autoencoders".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_interp.functional.splits import cut

BATCH = 256


class TopKCode(NamedTuple):
    """A trained autoencoder: code = the k largest of ReLU((h/scale − center) @ read + bias), the others 0.

    Attributes:
        read: `[d, atoms]`.
        bias: `[atoms]`.
        write: unit directions, `[atoms, d]`.
        center: of the scaled activation, `[d]`.
        scale: root mean square of the activation, a scalar.
        k: atoms that a sample may have.
        chosen: atoms whose codes are given, `[m]`: the others go on competing.
        threshold: of the chosen, `[m]`.
    """

    read: Tensor
    bias: Tensor
    write: Tensor
    center: Tensor
    scale: Tensor
    k: int
    chosen: Tensor
    threshold: Tensor

    def codes(self, h: Tensor) -> Tensor:
        """Codes `[n, m]` of activations `[n, d]`, float64, 0 or more."""
        x = h.float() / self.scale - self.center
        return _sparse(x @ self.read + self.bias, self.k)[:, self.chosen].double()

    def select(self, index: Tensor) -> TopKCode:
        """Some of the atoms."""
        return self._replace(chosen=self.chosen[index], threshold=self.threshold[index])


def train_top_k(
    h: Tensor, atoms: int, k: int, steps: int, lr: float, generator: torch.Generator, last: TopKCode | None = None
) -> TopKCode:
    """Train on the squared error of the reconstruction, by Adam.

    Args:
        h: activations `[n, d]`.
        atoms: to learn; each begins as the direction of a random sample.
        k: atoms that a sample may have.
        steps: of Adam.
        lr: its learning rate.
        generator: draws the batches.
        last: where to begin, if it is of the same size.
    """
    h = h.float()
    scale = (h - h.mean(0)).square().mean().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    x = h / scale
    center = x.mean(0)
    if last is not None and last.write.shape == (atoms, h.shape[1]):
        read, bias, write = last.read.clone(), last.bias.clone(), last.write.clone()
    else:
        seeds = x[torch.randint(len(x), (atoms,), generator=generator)] - center
        write = seeds / seeds.norm(dim=1, keepdim=True).clamp_min(1e-12)
        read, bias = write.T.clone(), write.new_zeros(atoms)
    with torch.inference_mode(False), torch.enable_grad():
        x, center = x.clone(), center.clone()
        parameters = [t.clone().requires_grad_() for t in (read, bias, write)]
        optimizer = torch.optim.Adam(parameters, lr)
        for _ in range(steps):
            batch = x[torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)] - center
            code = _sparse(batch @ parameters[0] + parameters[1], k)
            loss = (code @ parameters[2] - batch).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                parameters[2] /= parameters[2].norm(dim=1, keepdim=True).clamp_min(1e-12)
    read, bias, write = (t.detach() for t in parameters)
    every = torch.arange(atoms)
    out = TopKCode(read, bias, write, center, scale, k, every, torch.zeros(atoms, dtype=torch.float64))
    return out._replace(threshold=cut(out.codes(h)).threshold)


def _sparse(x: Tensor, k: int) -> Tensor:
    value, at = x.topk(k, dim=1)
    return torch.zeros_like(x).scatter(1, at, value.relu())
