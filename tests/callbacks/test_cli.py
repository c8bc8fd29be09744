"""`ConceptMonitor` from YAML through LightningCLI: what is written is what is built, and a slip is named."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from callbacks import boring
from callbacks.boring import BATCH, Boring, BoringData
from lightning_interp import Concept, ConceptMonitor, Confounder, DiscoverFeatures
from lightning_interp.errors import InterpWarning

pytest.importorskip("jsonargparse")
cli = pytest.importorskip("lightning.pytorch.cli")
NearestNameParser = pytest.importorskip("lightning_interp.callbacks.parser").NearestNameParser

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),  # few workers, eval mode, …
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Lightning 2.6 with jsonargparse 4.53
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 with torch 2.13
]

MONITOR = """
    - class_path: lightning_interp.ConceptMonitor
      init_args:
        variables:
          - class_path: lightning_interp.Concept
            init_args: {name: moo}
          - class_path: lightning_interp.Confounder
            init_args:
              name: grass
              label: callbacks.boring:grass_of
              kind: binary
              intervention: callbacks.boring:swap_grass
        layers: [encoder.*]
        output: head
        target: moo
        inputs: x
        measures: [contribution, groups, intervention]
        pooling: callbacks.boring:first_column
        warn_above: 1.0
"""
START = boring.trainer_yaml(epochs=1)


@pytest.fixture(autouse=True)
def _no_arguments_of_pytest(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fit"])  # else the command line warns of them


def build(text: str, folder: Path, *arguments: str, run: bool = False, **options) -> cli.LightningCLI:
    """The command line, with the YAML in a file; `run` fits."""
    path = folder / "run.yaml"
    path.write_text("seed_everything: false\n" + text)
    args = [*(["fit"] if run else []), "--config", str(path), *arguments]
    return cli.LightningCLI(Boring, BoringData, args=args, run=run, save_config_callback=None, **options)


def monitors(made: cli.LightningCLI) -> list[ConceptMonitor]:
    return [c for c in made.trainer.callbacks if isinstance(c, ConceptMonitor)]


def settings(m: ConceptMonitor) -> dict:
    """All that was set, by value."""
    inner = m.monitor
    names = ("patterns", "output", "measures", "weights", "interactions", "max_samples", "max_events", "warn_above", "seed")
    return {
        "variables": [(type(v), v.name, v.label, v.kind, v.intervention) for v in inner.variables],
        **{name: getattr(inner, name) for name in names},
        **{name: getattr(m, name) for name in ("data", "dataloader_idx", "prefix", "schedule")},
        "pooling": inner.pooling.mode,
        "inputs": inner.inputs.place,
    }


def test_variables_by_class_path_are_what_the_yaml_says(tmp_path):
    (found,) = monitors(build(START + MONITOR, tmp_path))
    moo, grass = found.monitor.variables
    assert (type(moo), type(grass)) == (Concept, Confounder)
    assert (moo.name, moo.label, moo.should_matter) == ("moo", "moo", True)
    assert (grass.name, grass.kind, grass.should_matter) == ("grass", "binary", False)
    assert found.monitor.patterns == ["encoder.*"]
    assert found.monitor.measures == ("contribution", "groups", "intervention")


STRIPES = """
          - class_path: lightning_interp.Confounder
            init_args:
              name: stripes
              examples: [callbacks.boring:with_stripes, callbacks.boring:without_stripes]
        layers: [encoder.*]"""


def test_examples_are_built_from_yaml_and_measured(tmp_path):
    text = (
        (START + MONITOR).replace("\n        layers: [encoder.*]", STRIPES).replace("[contribution, groups,", "[decodability,")
    )
    with pytest.warns(InterpWarning, match="'stripes' has examples, no labels: no contribution"):
        (found,) = monitors(build(text, tmp_path, run=True))
    stripes = found.monitor.variables[2]
    assert stripes.examples == ["callbacks.boring:with_stripes", "callbacks.boring:without_stripes"]
    assert all(scores["stripes"].value is not None for scores in found.latest.decodability.values())


def test_all_measures_are_built_from_yaml(tmp_path):
    wanted = "measures: [contribution, decodability, groups, sensitivity, mediation, intervention, entanglement]"
    (found,) = monitors(build(START + MONITOR.replace("measures: [contribution, groups, intervention]", wanted), tmp_path))
    assert found.monitor.measures == boring.ALL


def test_short_class_names_are_built_right_too(tmp_path):
    text = MONITOR.replace("lightning_interp.ConceptMonitor", "ConceptMonitor")
    text = text.replace("lightning_interp.Concept\n", "Concept\n").replace("lightning_interp.Confounder", "Confounder")
    assert "lightning_interp" not in text
    (found,) = monitors(build(START + text, tmp_path))
    assert [type(v) for v in found.monitor.variables] == [Concept, Confounder]


def test_functions_are_named_by_import_path(tmp_path):
    (found,) = monitors(build(START + MONITOR, tmp_path))
    batch = boring.probe_batch(8)
    grass = found.monitor.variables[1]
    assert torch.equal(grass.read(batch)[0], batch["grass"].double())
    assert torch.equal(grass.intervened(batch)["grass"], 1 - batch["grass"])
    a = torch.arange(6.0).view(2, 3)
    assert torch.equal(found.monitor.pooling.pool(a), a[:, :1])


def test_a_fit_from_yaml_measures(tmp_path):
    made = build(START + MONITOR, tmp_path, run=True)
    (found,) = monitors(made)
    assert found.latest.n == boring.VAL
    assert found.latest.intervention["grass"].value is not None
    assert "contribution/grass" in made.trainer.callback_metrics


@pytest.mark.parametrize("way", ["init_args.", ""], ids=["with init_args", "without"])
def test_the_command_line_overrides_the_yaml(tmp_path, way):
    wanted = ("max_samples=77", "data=train", "every_n_train_steps=3")
    made = build(START + MONITOR, tmp_path, *(f"--trainer.callbacks.{way}{setting}" for setting in wanted))
    (found,) = monitors(made)
    assert found.monitor.max_samples == 77
    assert found.data == "train"
    assert found.schedule.every_n_train_steps == 3
    assert [type(v) for v in found.monitor.variables] == [Concept, Confounder]
    assert found.monitor.patterns == ["encoder.*"]


def test_print_config_gives_back_the_same_monitor(tmp_path, capsys):
    (first,) = monitors(build(START + MONITOR, tmp_path))
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        build(START + MONITOR, tmp_path, "--print_config", run=True)
    assert done.value.code == 0
    printed = capsys.readouterr().out
    assert "every_n_train_steps: null" in printed
    assert "max_samples: 4096" in printed
    (again,) = monitors(build(printed.replace("ckpt_path: null\n", "").replace("weights_only: null\n", ""), tmp_path))
    assert settings(again) == settings(first)


EVERY = """
    - class_path: lightning_interp.SuppressConfounder
      init_args:
        confounder: grass
        given: [moo]
        penalty:
          class_path: lightning_interp.penalties.Sum
          init_args:
            penalties:
              - lightning_interp.penalties.ContributionPenalty
              - {class_path: lightning_interp.penalties.IndependencePenalty, init_args: {measure: hsic}}
            weights: [1, 10]
        layer: encoder.4
        budget: 0.05
        budget_on: ratio
    - class_path: lightning_interp.EraseConfounder
      init_args: {confounder: grass, layer: encoder, given: [moo], data: val, ridge: 0.001}
    - class_path: lightning_interp.DiscoverFeatures
      init_args:
        layer: encoder.4
        variables: [{class_path: lightning_interp.Concept, init_args: {name: moo}}]
        dictionary: {class_path: lightning_interp.discovery.TopKDictionary, init_args: {atoms: 12}}
        output: head
        inputs: [x]
        prefix: features
"""


def built(callbacks):
    """What every callback was built with, by value; the names that it waits for a monitor to know are looked up."""
    return [boring.described(c) for c in callbacks if type(c).__module__.startswith("lightning_interp")]


def printed(folder, capsys, *arguments):
    """The whole configuration, with all defaults, as the command line prints it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        build(START + MONITOR + EVERY, folder, *arguments, "--print_config", run=True)
    assert done.value.code == 0
    return capsys.readouterr().out.replace("ckpt_path: null\n", "").replace("weights_only: null\n", "")


def test_print_config_gives_back_every_callback(tmp_path, capsys):
    first = built(build(START + MONITOR + EVERY, tmp_path).trainer.callbacks)
    assert len(first) == 4
    text = printed(tmp_path, capsys)
    assert all(setting in text for setting in ("ramp_epochs: 1", "every_n_steps: 5", "memory_rows: 1024", "max_samples: 4096"))
    assert built(build(text, tmp_path).trainer.callbacks) == first


def test_the_command_line_overrides_the_last_callback(tmp_path, capsys):
    way = "--trainer.callbacks.init_args."
    arguments = [f"{way}prefix=other", f"{way}dictionary.init_args.atoms=7"]
    found = build(START + MONITOR + EVERY, tmp_path, *arguments).trainer.callbacks
    last = next(c for c in found if isinstance(c, DiscoverFeatures))
    assert (last.prefix, last.discovery.dictionary.atoms) == ("other", 7)
    assert built(build(printed(tmp_path, capsys, *arguments), tmp_path).trainer.callbacks) == built(found)


@pytest.mark.parametrize(
    ("right", "wrong", "last"),
    [
        ("warn_above: 1.0", "warn_abov: 1.0", "ConceptMonitor has no argument 'warn_abov'. Did you mean 'warn_above'?"),
        ("interp.ConceptMonitor", "interp.ConceptMonitr", "no attribute 'ConceptMonitr'. Did you mean 'ConceptMonitor'"),
        ("interp.Confounder", "interp.Confunder", "no attribute 'Confunder'. Did you mean 'Confounder'"),
        (
            "kind: binary",
            "kind: binry",
            "'binry' is none of 'auto', 'binary', 'categorical', 'continuous'. Did you mean 'binary'?",
        ),
        ("name: grass", "nam: grass", "Confounder has no argument 'nam'. Did you mean 'name'?"),
        ("callbacks.boring:swap_grass", "callbacks.boring:swap_gras", "has no 'swap_gras'. Did you mean 'swap_grass'"),
        ("[contribution, groups", "[contributions, groups", "'contributions' is none of"),
        ("warn_above: 1.0", "data: vall", "'vall' is none of 'val', 'train'. Did you mean 'val'?"),
        ("penalties.Sum", "penalties.Summ", "there is no 'Summ'. Did you mean 'Sum'?"),
        ("atoms: 12", "features: 12", "TopKDictionary has no argument 'features'. Known: 'atoms', 'k', 'steps', 'lr'."),
        ("weights: [1, 10]", "weight: [1, 10]", "Sum has no argument 'weight'. Did you mean 'weights'?"),
        ("measure: hsic", "measure: hsik", "'hsik' is none of"),
        ("budget_on: ratio", "budget_on: ration", "'ration' is none of 'share', 'ratio'. Did you mean 'ratio'?"),
    ],
)
def test_the_last_line_names_what_was_meant(tmp_path, capsys, right, wrong, last):
    text = MONITOR + EVERY
    assert text.count(right) == 1
    with pytest.raises((SystemExit, ValueError)) as error:
        build(START + text.replace(right, wrong), tmp_path, parser_class=NearestNameParser)
    said = capsys.readouterr().err if isinstance(error.value, SystemExit) else str(error.value)
    assert last in said.rstrip().splitlines()[-1]


def test_several_monitors_stand_in_one_yaml(tmp_path):
    second = MONITOR.replace("warn_above: 1.0", "warn_above: 1.0\n        prefix: train\n        data: train")
    one, two = monitors(build(START + MONITOR + second, tmp_path))
    assert (one.prefix, one.data, two.prefix, two.data) == ("", "val", "train", "train")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("{class_path: callbacks.boring.Animals, init_args: {n: 96}}", Dataset),
        # A function that returns one: jsonargparse 4.53 cannot build DataLoader's own `dataset`, a Dataset[T].
        (f"{{class_path: callbacks.boring.probe_loader, init_args: {{n: 96, batch: {BATCH}}}}}", DataLoader),
    ],
)
def test_a_probe_set_is_built_by_class_path(tmp_path, data, kind):
    made = build(START + MONITOR.rstrip() + f"\n        data: {data}\n", tmp_path, run=True)
    (found,) = monitors(made)
    assert isinstance(found.data, kind)
    assert (found.latest.n, found.latest.mode) == (96, "probe")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("warn_above: 1.0", "warn_abov: 1.0", "warn_abov"),
        ("warn_above: 1.0", "warn_above: lots", "lots"),
        ("lightning_interp.ConceptMonitor", "lightning_interp.ConceptMonitr", "ConceptMonitr"),
        ("lightning_interp.Confounder", "lightning_interp.Confunder", "Confunder"),
        ("kind: binary", "kind: binry", "binry"),
        ("name: grass", "nam: grass", "nam"),
        ("swap_grass", "swap_gras", "module 'callbacks.boring' has no 'swap_gras'. Did you mean 'swap_grass'"),
        ("callbacks.boring:grass_of", "callbacks.borin:grass_of", "cannot import module 'callbacks.borin'"),
        ("[contribution, groups", "[contributions, groups", "'contributions' is none of"),
        ("warn_above: 1.0", "data: vall", "vall"),
        ("warn_above: 1.0", "every_n_train_steps: 5", "`every_n_train_steps=5` does not go with `data='val'`"),
    ],
)
def test_a_slip_in_the_yaml_is_named(tmp_path, capsys, right, wrong, message):
    assert MONITOR.count(right) == 1
    with pytest.raises((SystemExit, ValueError)) as error:
        build(START + MONITOR.replace(right, wrong), tmp_path)
    said = capsys.readouterr().err + str(error.value)
    assert message in said
