"""`explain_checkpoint`, and `lightning-interp explain`: what LightningCLI wrote is explained as its run explained it."""

import sys

import pytest
import torch
import yaml

from callbacks import boring
from lightning_interp.cli import main

pytest.importorskip("jsonargparse")
cli = pytest.importorskip("lightning.pytorch.cli")
explain_checkpoint = pytest.importorskip("lightning_interp.callbacks.experiment").explain_checkpoint

pytestmark = [*boring.HOST_WARNINGS, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

VARIABLES = """
          - {class_path: lightning_interp.Concept, init_args: {name: moo}}
          - {class_path: lightning_interp.Confounder, init_args: {name: grass, intervention: "callbacks.boring:swap_grass"}}"""
CONFIG = f"""
seed_everything: 3
model: {{class_path: callbacks.boring.Boring}}
data: {{class_path: callbacks.boring.BoringData}}
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_interp.ConceptMonitor
      init_args:
        layers: [encoder.0, encoder.4]
        output: head
        target: moo
        inputs: x
        measures: [contribution, decodability, groups, intervention]
        warn_above: .inf
        summary: false
        variables:{VARIABLES}
    - class_path: lightning_interp.EraseConfounder
      init_args: {{confounder: grass, layer: encoder.4, given: [moo], start_rows: 64}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{save_last: true}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder that a `fit` wrote, and its monitor's last event."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fit"])
        made = cli.LightningCLI(args=["fit", "--config", str(folder / "mine.yaml"), f"--trainer.default_root_dir={folder}"])
    (checkpoint,) = folder.rglob("last.ckpt")
    (config,) = folder.rglob("config.yaml")
    return checkpoint, config, made.trainer.callbacks[0].latest


def numbers(event):
    return [{k: r[k] for k in ("step", "measure", "layer", "variable", "by", "value")} for r in event.records()]


def changed(config, tmp_path, change):
    """The configuration, with a change."""
    found = yaml.safe_load(config.read_text())
    change(found)
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(found))
    return tmp_path / "changed.yaml"


def test_a_checkpoint_is_explained_as_its_run_explained_it(run, tmp_path):
    checkpoint, config, wanted = run
    found = explain_checkpoint(checkpoint, config)
    assert list(found) == [""]
    assert found[""].probe == wanted.probe
    assert [{**r, "value": pytest.approx(r["value"], rel=1e-6)} for r in numbers(wanted)] == numbers(found[""])
    bare = explain_checkpoint(checkpoint, changed(config, tmp_path, lambda c: c["trainer"]["callbacks"].pop(1)))[""]
    assert bare.contribution["grass"].value > 2 * wanted.contribution["grass"].value  # the erasure had taken part


def test_the_command_prints_the_equation_and_writes_a_report(run, tmp_path, capsys):
    checkpoint, config, wanted = run
    assert main(["explain", str(checkpoint), "--config", str(config), "-o", str(tmp_path / "r.html")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(wanted))
    assert "checkpoint" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(model={"lr": 0.1}), "names no `class_path` under `model`"),
        (lambda c: c["trainer"].update(callbacks=None), "has no ConceptMonitor with data='val'"),
        (lambda c: c["trainer"]["callbacks"][0]["init_args"].update(data="train"), "has no ConceptMonitor with data='val'"),
        (
            lambda c: c.update(model={"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}),
            "are not those of BoringM",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(run, tmp_path, capsys, change, says):
    checkpoint, config, _ = run
    assert main(["explain", str(checkpoint), "--config", str(changed(config, tmp_path, change))]) == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_named(run, tmp_path, capsys):
    _, config, _ = run
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    (tmp_path / "text.ckpt").write_text("no")
    for name, says in (("other", "has no `state_dict`"), ("text", "is no checkpoint that loads"), ("none", "No such file")):
        assert main(["explain", str(tmp_path / f"{name}.ckpt"), "--config", str(config)]) == 2
        assert says in capsys.readouterr().err
