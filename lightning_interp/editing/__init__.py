"""Surgery: an erasure folded into the weights, with a certificate and a way back."""

from lightning_interp.editing.result import Edit as Edit
from lightning_interp.editing.surgery import edit as edit
from lightning_interp.editing.surgery import zero_weight as zero_weight
