"""Digits on grass: the cow on grass in miniature, from real data that comes inside packages.

scikit-learn's 1,797 handwritten digits (8 × 8) are drawn in white on crops of scikit-image's photographs of grass and
brick (the extra ``demo``; nothing is downloaded). The task is "is the digit 5 or more?". In training the photograph
agrees with the label 95 % of the time (5–9 on grass, 0–4 on brick), so that a plain net learns the grass first and
fails on the held-out parts, where each digit is seen equally often on both. The same digit on the same crop of the
other photograph is known: `swap_background` is the exact do(grass), the truth to check every estimate against.

On the validation part after 15 epochs with the defaults (two seeds): a plain net has accuracy .60–.65, its worst group
.10, and do(grass) moves the margin by 8.4–8.8 logits; with ``agreement=0.5``, the ceiling, .93, .87–.88 and 0.0.
"""

from lightning_interp.demo.digits import GrassyDigits as GrassyDigits
from lightning_interp.demo.digits import GrassyDigitsData as GrassyDigitsData
from lightning_interp.demo.digits import composite as composite
from lightning_interp.demo.digits import originals as originals
from lightning_interp.demo.digits import swap_background as swap_background
from lightning_interp.demo.network import GrassyDigitsModel as GrassyDigitsModel
from lightning_interp.demo.network import SmallCNN as SmallCNN

__all__ = [
    "GrassyDigits",
    "GrassyDigitsData",
    "GrassyDigitsModel",
    "SmallCNN",
    "composite",
    "originals",
    "swap_background",
]
