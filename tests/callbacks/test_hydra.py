"""Callbacks by Hydra's `_target_`, its own lists and dicts left as they are: what is written is what is built."""

import pytest
import torch

from callbacks import boring
from callbacks.boring import described, fit, monitor
from lightning_interp import (
    Concept,
    ConceptMonitor,
    Confounder,
    DiscoverFeatures,
    EraseConfounder,
    SuppressConfounder,
)
from lightning_interp.discovery import TopKDictionary
from lightning_interp.penalties import ContributionPenalty, IndependencePenalty, Sum

OmegaConf = pytest.importorskip("omegaconf").OmegaConf
hydra = pytest.importorskip("hydra.utils")

pytestmark = boring.HOST_WARNINGS

VARIABLES = """
  - {_target_: lightning_interp.Concept, name: moo}
  - _target_: lightning_interp.Confounder
    name: grass
    label: callbacks.boring:grass_of
    kind: binary
    intervention: callbacks.boring:swap_grass
  - _target_: lightning_interp.Confounder
    name: stripes
    examples: [callbacks.boring:with_stripes, callbacks.boring:without_stripes]
"""
MONITOR = f"""
_target_: lightning_interp.ConceptMonitor
variables: {VARIABLES}
layers: [encoder.0, encoder.2]
output: head
target: moo
inputs: [x]
measures: [contribution, decodability, groups, intervention]
warn_above: .inf
"""
SUPPRESS = """
_target_: lightning_interp.SuppressConfounder
confounder: grass
given: [moo]
penalty:
  _target_: lightning_interp.penalties.Sum
  penalties:
    - {_target_: lightning_interp.penalties.ContributionPenalty}
    - {_target_: lightning_interp.penalties.IndependencePenalty, measure: hsic}
  weights: [1.0, 10.0]
layer: encoder.4
weight: 3.0
start_epoch: 0
"""
ERASE = "{_target_: lightning_interp.EraseConfounder, confounder: grass, given: [moo], layer: encoder, data: val}"
DISCOVER = """
_target_: lightning_interp.DiscoverFeatures
layer: encoder.4
variables: [{_target_: lightning_interp.Concept, name: moo}]
dictionary: {_target_: lightning_interp.discovery.TopKDictionary, atoms: 12}
inputs: [x]
"""


def in_python():
    stripes = Confounder("stripes", examples=["callbacks.boring:with_stripes", "callbacks.boring:without_stripes"])
    grass = Confounder("grass", "callbacks.boring:grass_of", "binary", "callbacks.boring:swap_grass")
    measures = ["contribution", "decodability", "groups", "intervention"]
    both = Sum([ContributionPenalty(), IndependencePenalty("hsic")], [1.0, 10.0])
    return {
        MONITOR: monitor([Concept("moo"), grass, stripes], inputs=["x"], measures=measures),
        SUPPRESS: SuppressConfounder("grass", ["moo"], both, layer="encoder.4", weight=3.0, start_epoch=0),
        ERASE: EraseConfounder("grass", "encoder", ["moo"], data="val"),
        DISCOVER: DiscoverFeatures("encoder.4", [Concept("moo")], inputs=["x"], dictionary=TopKDictionary(12)),
    }


@pytest.mark.parametrize("convert", ["none", "all"])
@pytest.mark.parametrize("text", [MONITOR, SUPPRESS, ERASE, DISCOVER], ids=["monitor", "suppress", "erase", "discover"])
def test_what_is_built_is_what_python_builds(text, convert):
    found = hydra.instantiate(OmegaConf.create(text), _convert_=convert)
    assert plain_lists(described(found)) == plain_lists(described(in_python()[text]))


def plain_lists(found):
    """A list of Hydra's equals a list."""
    if isinstance(found, dict):
        return {k: plain_lists(v) for k, v in found.items()}
    return [plain_lists(v) for v in found] if isinstance(found, (list, tuple)) else found


PLAIN = """
_target_: lightning_interp.SuppressConfounder
confounder: grass
given: [moo]
weight: 3.0
start_epoch: 0
"""


@pytest.mark.filterwarnings("ignore:'stripes' has examples, no labels")
def test_a_run_from_hydra_is_that_from_python(tmp_path):
    config = OmegaConf.create({"callbacks": {"watch": OmegaConf.create(MONITOR), "suppress": OmegaConf.create(PLAIN)}})
    callbacks = list(hydra.instantiate(config).callbacks.values())
    run, model = fit(*callbacks, enable_checkpointing=True, default_root_dir=tmp_path)
    made = in_python()
    _, other = fit(made[MONITOR], SuppressConfounder("grass", ["moo"], weight=3.0, start_epoch=0))
    assert boring.bits(model.state_dict()) == boring.bits(other.state_dict())
    assert [boring.plain(e) for e in callbacks[0].history] == [boring.plain(e) for e in made[MONITOR].history]
    saved = torch.load(run.checkpoint_callback.best_model_path, weights_only=True)  # no list of Hydra's in it
    assert any("ConceptMonitor" in key for key in saved["callbacks"])


@pytest.mark.parametrize(
    ("text", "right", "wrong", "said"),
    [
        (MONITOR, "layers:", "layres:", "ConceptMonitor has no argument 'layres'. Did you mean 'layers'?"),
        (MONITOR, "decodability", "decodabilty", "'decodabilty' is none of"),
        (
            MONITOR,
            "kind: binary",
            "kind: binry",
            "`kind='binry'` is none of auto, binary, categorical, continuous. Did you mean 'binary'?",
        ),
        (MONITOR, "Concept, name: moo", "Concept, nam: moo", "Concept has no argument 'nam'. Did you mean 'name'?"),
        (SUPPRESS, "weights:", "weigths:", "Sum has no argument 'weigths'. Did you mean 'weights'?"),
        (SUPPRESS, "weight: 3.0", "wieght: 3.0", "SuppressConfounder has no argument 'wieght'. Did you mean 'weight'?"),
        (SUPPRESS, "hsic", "hsik", "`measure` expects 'correlation' or 'hsic', got 'hsik'. Did you mean 'hsic'?"),
        (ERASE, "data: val", "data: vall", "Did you mean 'val'?"),
        (ERASE, "layer:", "layers:", "EraseConfounder has no argument 'layers'. Did you mean 'layer'?"),
        (DISCOVER, "atoms", "atom", "TopKDictionary has no argument 'atom'. Did you mean 'atoms'"),
    ],
)
def test_a_slip_names_what_was_meant(text, right, wrong, said):
    assert text.count(right) == 1
    with pytest.raises(Exception, match="Error in call to target") as error:
        hydra.instantiate(OmegaConf.create(text.replace(right, wrong)))
    *_, last = (line for line in str(error.value).splitlines() if not line.startswith("full_key"))  # Hydra's own last line
    assert said in last


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("lightning_interp.ConceptMonitr", "Did you mean 'ConceptMonitor'"), ("lightning_interp.Monitr", "'Monitor'")],
)
def test_a_slip_in_a_target_is_answered_by_the_cause(wrong, said):
    """Hydra says only that it cannot find the target; the error that stands above it in the traceback names the nearest."""
    with pytest.raises(Exception, match="Error locating target") as error:
        hydra.instantiate(OmegaConf.create({"_target_": wrong}))
    problem, causes = error.value, []
    while problem is not None:
        causes.append(str(problem))
        problem = problem.__cause__ or problem.__context__
    assert any(said in cause for cause in causes)


def test_the_check_leaves_a_constructor_of_the_users_alone():
    class Mine(ContributionPenalty):
        def __init__(self, **options):
            super().__init__(**options)

    assert Mine(window_rows=7).window_rows == 7
    with pytest.raises(TypeError, match=r"ContributionPenalty has no argument 'windowrows'\. Did you mean 'window_rows'"):
        ContributionPenalty(windowrows=7)
    assert isinstance(monitor(), ConceptMonitor)
