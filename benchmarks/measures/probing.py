"""How well a variable can be read from a layer: a logistic probe by scikit-learn."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor


def probe_accuracy(h: Tensor, z: Tensor, fitted: Tensor) -> float:
    """Accuracy on the rows that the probe was not fitted to.

    Args:
        h: activations `[n, d]`.
        z: 0 or 1, `[n]`.
        fitted: the rows to fit to, bool `[n]`.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    probe.fit(h[fitted].numpy(), z[fitted].numpy())
    return float(probe.score(h[~fitted].numpy(), z[~fitted].numpy()))
