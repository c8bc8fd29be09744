"""Deep Feature Reweighting by hand (Kirichenko et al. 2023): the head trained anew, on balanced held-out rows.

l1 logistic regression on the standardised activation; C by the worst group on half of the rows; then the mean over 20 subsets
in which every group is as large as the smallest.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from shortcuts.tasks import Fields, Task

COSTS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # C of the logistic regression, as in the paper
SUBSETS = 20
LEAST = 10  # rows of a group; smaller ones are left out


def features(net: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """What the head is given, `[n, d]`."""
    found: list[torch.Tensor] = []
    handle = net.head.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    net.eval()
    with torch.no_grad():
        for part in inputs.split(512):
            net(part)
    handle.remove()
    return torch.cat(found).numpy()


def groups(label: np.ndarray, confounder: np.ndarray) -> np.ndarray:
    """Each row's group, from 0; −1 where it has under ten rows."""
    _, group, count = np.unique(np.stack([label, confounder], 1), axis=0, return_inverse=True, return_counts=True)
    group = np.where(count[group.ravel()] >= LEAST, group.ravel(), -1)
    return np.where(group < 0, -1, np.searchsorted(np.unique(group[group >= 0]), group))


def retrain(task: Task, net: nn.Module, fields: Fields, seed: int) -> None:
    """Fit a new head of a net with two classes.

    Args:
        task: of the net.
        net: changed in place.
        fields: held-out rows.
        seed: of the halves and the subsets.
    """
    h = features(net, fields[task.inputs])
    label = fields["label"].numpy()
    group = groups(label, fields[task.confounder.name].numpy())
    rng = np.random.default_rng(seed)
    source = np.arange(len(h)) if task.cluster is None else fields[task.cluster].numpy()
    sources = np.unique(source)
    first = np.isin(source, rng.permutation(sources)[: len(sources) // 2])  # no source in both halves
    every = range(group.max() + 1)

    def subset(rows: np.ndarray) -> np.ndarray:
        least = min((group[rows] == g).sum() for g in every)
        return np.concatenate([rng.choice(rows[group[rows] == g], least, replace=False) for g in every])

    def fitted(rows: np.ndarray, c: float) -> tuple[np.ndarray, float]:
        mean, sd = h[rows].mean(0), h[rows].std(0) + 1e-8
        found = LogisticRegression(C=c, l1_ratio=1, solver="liblinear", random_state=seed).fit(
            (h[rows] - mean) / sd, label[rows]
        )
        w = found.coef_[0] / sd
        return w, float(found.intercept_[0] - w @ mean)

    def worst(model: tuple[np.ndarray, float], rows: np.ndarray) -> float:
        right = (h[rows] @ model[0] + model[1] > 0) == label[rows]
        return min(right[group[rows] == g].mean() for g in every)

    here, there = np.flatnonzero(first), np.flatnonzero(~first)
    c = max(COSTS, key=lambda c: worst(fitted(subset(here), c), there))
    models = [fitted(subset(np.arange(len(h))), c) for _ in range(SUBSETS)]
    w, b = (np.mean([m[i] for m in models], 0) for i in (0, 1))
    with torch.no_grad():  # the margin is w·h + b
        net.head.weight.copy_(torch.from_numpy(np.stack([-w / 2, w / 2])))
        net.head.bias.copy_(torch.tensor([-b / 2, b / 2]))
