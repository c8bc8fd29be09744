"""The examples on real data, a transformer, and the YAML twins: each runs, in its quick form, and prints what it promises."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = {"adult": "adult.test.xz", "reviews": "cad_imdb.tsv.xz"}
QUICK = {
    "adult": ["--trainer.max_epochs=3"],
    "reviews": ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"],
    "hidden_grass": ["--trainer.max_epochs=1"],
    "edited_transformer": ["--trainer.max_epochs=1"],
}
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, and alarms that the examples are about


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """Run an example in this process, away from the checkout; gives what it printed."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capfd.readouterr().out

    return run


def needed(name):
    folder = os.environ.get("LIGHTNING_INTERP_DATA")
    if name in FILES and not (folder and (Path(folder) / FILES[name]).exists()):
        pytest.skip(f"LIGHTNING_INTERP_DATA is not set, or has no {FILES[name]}")


@pytest.mark.parametrize(("name", "concept", "confounder"), [("adult", "rich", "male"), ("reviews", "positive", "genre")])
def test_both_runs_are_printed(run, name, concept, confounder):
    needed(name)
    out = run(f"{name}.py", "--quick")
    equation = rf"logit = \S+ [+−] \S+·{concept} \[.*\] [+−] \S+·{confounder} \[.*\] \+ unexplained"
    for which in ("plain", "suppressed"):
        assert re.search(rf"^{which}, on .*:\nafter .*\n{equation}\nshare of variance: .*\ndo\({confounder}\) = ", out, re.M)


def test_the_grass_is_cut_out_of_a_transformers_block(run):
    out = run("edited_transformer.py", "--quick")
    assert re.search(r"^as trained:\nafter .*\nlogit = .*·grass", out, re.M)
    assert re.search(r"^the grass cut out of the last block:\nafter .*\nlogit = .*·grass", out, re.M)
    before, after = (float(value) for value in re.search(r"'before': (\S+), 'after': (\S+),", out).groups())
    assert after < before / 5


@pytest.mark.parametrize("name", QUICK)
def test_the_yaml_twins_run(run, tmp_path, name):
    needed(name)
    out = run("cli.py", "fit", "--config", str(EXAMPLES / f"{name}.yaml"), *QUICK[name])
    assert re.search(r"What the model uses: \d events?, step", out)
    assert next(tmp_path.rglob("config.yaml")).parent.parent.name == name


@pytest.mark.parametrize(("name", "source"), [("adult", "UCI Adult"), ("reviews", "Kaushik et al. 2020")])
def test_where_the_data_is_missing_one_line_says_which(run, monkeypatch, tmp_path, name, source):
    monkeypatch.setenv("LIGHTNING_INTERP_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=rf"{FILES[name]}.*{source}") as stopped:
        run(f"{name}.py", "--quick")
    assert len(str(stopped.value).splitlines()) == 1
