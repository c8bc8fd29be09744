"""Penalties: each a pure function and a class that builds from YAML."""

from lightning_interp.penalties.combination import Sum as Sum
from lightning_interp.penalties.contribution import ContributionPenalty as ContributionPenalty
from lightning_interp.penalties.contribution import contribution_penalty as contribution_penalty
from lightning_interp.penalties.gradient import GradientPenalty as GradientPenalty
from lightning_interp.penalties.gradient import gradient_penalty as gradient_penalty
from lightning_interp.penalties.group_dro import GroupDRO as GroupDRO
from lightning_interp.penalties.independence import IndependencePenalty as IndependencePenalty
from lightning_interp.penalties.independence import correlation_penalty as correlation_penalty
from lightning_interp.penalties.independence import hsic_penalty as hsic_penalty
from lightning_interp.penalties.invariance import InvariancePenalty as InvariancePenalty
from lightning_interp.penalties.invariance import invariance_penalty as invariance_penalty
from lightning_interp.penalties.reweighting import BalancedReweighting as BalancedReweighting
from lightning_interp.penalties.reweighting import balanced_loss as balanced_loss
from lightning_interp.penalties.step import Penalty as Penalty
from lightning_interp.penalties.step import Step as Step

__all__ = [
    "BalancedReweighting",
    "ContributionPenalty",
    "GradientPenalty",
    "GroupDRO",
    "IndependencePenalty",
    "InvariancePenalty",
    "Penalty",
    "Step",
    "Sum",
    "balanced_loss",
    "contribution_penalty",
    "correlation_penalty",
    "gradient_penalty",
    "hsic_penalty",
    "invariance_penalty",
]
