"""Pure tensor functions: the mathematics, with no state and no Trainer."""

from lightning_interp.functional import contribution as contribution
from lightning_interp.functional import dependence as dependence
from lightning_interp.functional import direction as direction
from lightning_interp.functional import entanglement as entanglement
from lightning_interp.functional import erasure as erasure
from lightning_interp.functional import groups as groups
from lightning_interp.functional import intervention as intervention
from lightning_interp.functional import mediation as mediation
from lightning_interp.functional import moments as moments
from lightning_interp.functional import probe as probe
from lightning_interp.functional import sensitivity as sensitivity
from lightning_interp.functional import shares as shares

__all__ = [
    "contribution",
    "dependence",
    "direction",
    "entanglement",
    "erasure",
    "groups",
    "intervention",
    "mediation",
    "moments",
    "probe",
    "sensitivity",
    "shares",
]
