"""TCAV (Kim et al. 2018) by captum as it comes, and FastCAV (Schmalwasser et al. 2025) by hand from the paper.

A concept activation vector tells the concept's examples from others. captum's default is a linear support vector machine by
stochastic gradient descent (scikit-learn's SGDClassifier, α .01). The score is the fraction of a class's images whose output
grows along it. Both are given the margin, not one logit, which takes the part out of it that all classes share.
"""

import tempfile
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

CLASS = 1  # whose images are scored


class Margin(nn.Module):
    """A binary classifier that gives logit₁ − logit₀, `[n, 1]`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """The margin."""
        logits = self.net(image)
        return logits[:, 1:] - logits[:, :1]


def captum_tcav(
    net: nn.Module, layers: Sequence[str], pairs: Sequence[tuple[Tensor, Tensor]], images: Tensor
) -> dict[str, list[tuple[float, float]]]:
    """captum's TCAV with its default classifier.

    Args:
        net: a binary classifier, logits `[n, 2]`.
        layers: dotted names.
        pairs: for every concept its examples and the images it is told from; a set that is given twice is read once.
        images: of the class that is scored.

    Returns:
        {layer: (score, mean derivative along the vector as captum has it) of every pair}.
    """
    from captum.concept import TCAV, Concept

    concepts: dict[int, Concept] = {}
    for pair in pairs:
        for examples in pair:
            if id(examples) not in concepts:
                found = DataLoader(examples, batch_size=len(examples))
                concepts[id(examples)] = Concept(len(concepts), f"set{len(concepts)}", found)
    sets = [[concepts[id(examples)] for examples in pair] for pair in pairs]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tcav = TCAV(Margin(net), [f"net.{layer}" for layer in layers], save_path=folder)
        scores = tcav.interpret(images, sets, target=0)
    by_pair = [scores["-".join(str(c.id) for c in pair)] for pair in sets]
    return {
        layer: [
            (float(found[f"net.{layer}"]["sign_count"][0]), float(found[f"net.{layer}"]["magnitude"][0])) for found in by_pair
        ]
        for layer in layers
    }


def fast_cav(concept: Tensor, other: Tensor) -> Tensor:
    """FastCAV: the concept's mean less the mean of all, at unit length, `[d]`.

    Args:
        concept: activations of its examples, `[n, d]`.
        other: of those it is told from, `[m, d]`.
    """
    centre = torch.cat([concept, other]).mean(0)
    direction = (concept - centre).mean(0)
    return direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)


def tcav_score(gradients: Tensor, direction: Tensor) -> float:
    """Fraction of samples whose output grows along a direction: gradients `[n, d]`, `[d]`."""
    return float((gradients @ direction > 0).double().mean())


def several(values: Sequence[tuple[float, float]]) -> Mapping[str, float]:
    """Mean score and derivative over the sets of random images."""
    score, derivative = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
    return {"score": score, "derivative": derivative}
