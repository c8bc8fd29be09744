"""What the README says works: its code runs, its files and keys exist, and the examples do what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")  # Lightning's own, and the alarm about grass that the README is about
def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["records"][0].keys() >= {"step", "measure", "variable", "value", "low", "high", "note"}
    assert names["event"].n == 1392


def test_the_readmes_yaml_is_that_of_the_example():
    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1))
    example = yaml.safe_load((ROOT / "examples" / "grassy_digits.yaml").read_text())
    short, full = (y["trainer"]["callbacks"][0]["init_args"] for y in (block, example))
    assert {k: full[k] for k in short} == short


def test_the_readmes_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


@pytest.mark.parametrize("name", sorted(set(re.findall(r"tests/[\w/]+\.py::\w+", (ROOT / "docs" / "matrix.md").read_text()))))
def test_the_tests_that_the_matrix_names_exist(name):
    path, _, test = name.partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path


def run(*args):
    command = [sys.executable, *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=env).stdout


def test_the_demo_prints_equations_a_table_of_both_runs_and_how_to_open_tensorboard(tmp_path):
    out = run(ROOT / "examples" / "grassy_digits.py", "--epochs", 1, "--seed", 1, "--log-dir", tmp_path)
    assert re.search(r"after 9 steps, epoch 0: n = 1392, validation, balanced weights", out)
    assert re.search(r"logit = \S+ [+−] \S+·digit \[.*\] [+−] \S+·grass \[.*\] \+ unexplained", out)
    assert "do(grass) = " in out
    assert re.search(r"test digits +plain +suppressed\n", out)
    assert re.search(r"worst group +0\.\d{3} +0\.\d{3}\n", out)
    assert f"tensorboard --logdir {tmp_path}" in out
    assert {p.parent.parent.name for p in tmp_path.rglob("events.out.tfevents*")} == {"plain", "suppressed"}


def test_the_hidden_labels_are_found_and_the_check_is_printed(tmp_path):
    out = run(ROOT / "examples" / "hidden_grass.py", "--epochs", 1, "--log-dir", tmp_path)
    assert re.search(r"unexplained, unnamed: 0\.\d{3}", out)
    assert len(list(tmp_path.rglob("strongest.png"))) == len(list(tmp_path.rglob("weakest.png"))) == 1
    agreement = re.search(r"label found = true label +(0\.\d{3}|1\.000) ", out)
    assert float(agreement.group(1)) > 0.9
    assert re.search(r"worst group +0\.\d{3} +0\.\d{3}\n", out)


def test_the_demo_runs_from_yaml(tmp_path):
    run(
        ROOT / "examples" / "cli.py", "fit", "--config", ROOT / "examples" / "grassy_digits.yaml",
        "--trainer.max_epochs", 1, "--trainer.logger.init_args.save_dir", tmp_path,
    )  # fmt: skip
    config = yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text())
    kinds = [v["class_path"] for v in config["trainer"]["callbacks"][0]["init_args"]["variables"]]
    assert kinds == ["lightning_interp.Concept", "lightning_interp.Confounder"]


def test_a_plain_loop_prints_both_runs():
    out = run(ROOT / "examples" / "plain_loop.py", "--epochs", 1)
    assert re.search(r"suppressed, validation digits:\nafter 9 steps, epoch 0: n = 1392", out)
    assert re.search(r"test digits +plain +suppressed\n  worst group +0\.\d{3} +0\.\d{3}\n", out)


def test_the_hugging_face_example_prints_both_runs():
    pytest.importorskip("accelerate")
    out = run(ROOT / "examples" / "huggingface.py", "--epochs", 1)
    assert len(re.findall(r"after 25 steps, epoch 0: n = 800, validation", out)) == 2
    assert re.search(r"logit = \S+ [+−] \S+·praise \[.*\] [+−] \S+·reviewer \[.*\] \+ unexplained", out)
