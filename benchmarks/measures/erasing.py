"""What is lost when concept-erasure's LEACE (Belrose et al. 2023) takes a variable out of a layer."""

import warnings

from torch import Tensor

from measures.layer import logits_from
from measures.nets import Staged


def erase(h: Tensor, z: Tensor) -> Tensor:
    """Activations `[n, d]` after LEACE with the package's defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script, when it is imported
        from concept_erasure import LeaceFitter
    return LeaceFitter.fit(h, z).eraser(h)


def losses(net: Staged, depth: str, h: Tensor, fields: dict[str, Tensor]) -> dict[str, float]:
    """What erasing the confounder at a stage takes from the net.

    Returns:
        accuracy: on the task, before less after.
        variance: of the margin, the part of it that is gone.
        sd: 2·√(variance that is gone), in logits: the size of the effect of a binary variable that is as often 0 as 1.
        difference: what is gone of the margin's mean difference between images with the confounder and without, in logits.
    """
    before = logits_from(net, depth, h, fields["image"])
    after = logits_from(net, depth, erase(h, fields["confounder"].float()), fields["image"])
    right = [float((o.argmax(1) == fields["label"]).double().mean()) for o in (before, after)]
    margins = [(o[:, 1] - o[:, 0]).double() for o in (before, after)]
    old, new = (float(m.var()) for m in margins)
    z = fields["confounder"]
    apart = [float(m[z == 1].mean() - m[z == 0].mean()) for m in margins]
    return {
        "accuracy": right[0] - right[1],
        "variance": 1 - new / old,
        "sd": 2 * max(0.0, old - new) ** 0.5,
        "difference": apart[0] - apart[1],
    }
