"""Passes of the library's own: on example sets, and again on kept batches for gradients, for erasures and for interventions."""

from lightning_interp.passes.again import Derivative as Derivative
from lightning_interp.passes.again import Run as Run
from lightning_interp.passes.again import run_again as run_again
from lightning_interp.passes.examples import Shown as Shown
from lightning_interp.passes.examples import example_direction as example_direction
from lightning_interp.passes.examples import read_examples as read_examples
from lightning_interp.passes.own_passes import OWN_PASS as OWN_PASS
from lightning_interp.passes.own_passes import OwnPasses as OwnPasses
from lightning_interp.passes.replay import Caller as Caller
from lightning_interp.passes.replay import Replay as Replay
from lightning_interp.passes.replay import own_pass as own_pass
