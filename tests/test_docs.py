"""What README and docs say works: their code runs, names, keys and links are there, and the examples do what they print."""

import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import OmegaConf

import lightning_interp
from lightning_interp import Concept, ConceptMonitor, Confounder, DiscoverFeatures, SuppressConfounder, cli, to_records
from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel
from lightning_interp.monitor import MEASURES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(p.relative_to(ROOT)): p.read_text() for p in FILES}
COMPILED_ONLY = re.compile(r"<!-- compiled only: .+ -->\s*$")
BESIDE = {"callbacks.parser", "certificate", "demo", "errors", "huggingface"}  # modules that are public, too


def blocks(text, language):
    """The page's code blocks of a language, each with whether it is only compiled, for a reason that the page gives."""
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [(m.group(1), bool(COMPILED_ONLY.search(text[: m.start()]))) for m in found]


@pytest.mark.filterwarnings("ignore")  # Lightning's own, and the alarm about grass that the pages are about
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "python")])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    names = {"__name__": "page"}
    for number, (block, compiled_only) in enumerate(blocks(PAGES[page], "python"), 1):
        code = compile(block, f"{page}, block {number}", "exec")
        if not compiled_only:
            exec(code, names)
    if page == "README.md":
        assert names["records"][0].keys() >= {"step", "measure", "variable", "value", "low", "high", "note"}
        assert names["event"].n == 1392


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "yaml")])
def test_the_yaml_of_a_page_builds(page, tmp_path):
    for number, (block, _) in enumerate(blocks(PAGES[page], "yaml")):
        if "_target_" in block:
            built = [instantiate(one) for one in OmegaConf.create(block).values()]
        else:
            path = tmp_path / f"{number}.yaml"
            path.write_text(block)
            demo = ["--model=lightning_interp.demo.GrassyDigitsModel", "--data=lightning_interp.demo.GrassyDigitsData"]
            quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
            made = LightningCLI(run=False, save_config_callback=None, args=[*demo, *quiet, "--config", str(path)])
            built = [c for c in made.trainer.callbacks if type(c).__module__.startswith("lightning_interp.")]
        assert built, block


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "sh") or "lightning-interp " in text])
def test_the_commands_of_a_page_are_there(page):
    lines = [line for block, _ in blocks(PAGES[page], "sh") for line in block.splitlines()]
    lines += re.findall(r"^    (lightning-interp .*|make .*|python .*)$", PAGES[page], re.MULTILINE)
    for line in lines:
        command, *arguments = shlex.split(line, comments=True)
        if command == "lightning-interp":
            with pytest.raises(SystemExit, match=r"^0$") if "--help" in arguments else nullcontext():
                cli.parser().parse_args(arguments)
        elif command == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif command == "python" and "/" in arguments[0]:
            assert (ROOT / arguments[0]).exists(), line
        else:
            assert (command, *arguments[:1]) in {("pip", "install"), ("tensorboard", "--logdir"), ("python", "cli.py")}, line


def test_the_scripts_that_pages_name_are_there():
    for page, text in PAGES.items():
        for name in re.findall(r"\b(?:benchmarks|examples|docs|tests)/[\w/]+\.(?:py|yaml|md)\b", text):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_the_readmes_yaml_is_that_of_the_example():
    block = yaml.safe_load(blocks(README, "yaml")[0][0])
    example = yaml.safe_load((ROOT / "examples" / "grassy_digits.yaml").read_text())
    short, full = (y["trainer"]["callbacks"][0]["init_args"] for y in (block, example))
    assert {k: full[k] for k in short} == short


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning, such as a link or an anchor that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_the_site_opens_offline(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 2
    for page in pages:
        for tag in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", page.read_text()):
            assert not re.search(r"""(?:src|href|srcset)=["']?(?:https?:)?//""", tag), f"{page}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def public_names():
    """{name: object} of all that `__all__` names."""
    out = {}
    for owner in ("", *lightning_interp._MODULES, *sorted(BESIDE)):
        where = f"lightning_interp.{owner}".strip(".")
        module = importlib.import_module(where)
        out |= {f"{where}.{name}": getattr(module, name) for name in module.__all__}
    for name, module in [(n, m) for n, m in out.items() if n.startswith("lightning_interp.functional.")]:
        own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", None) == name and not k.startswith("_")}
        out |= {f"{name}.{k}": v for k, v in own.items()}
    return {n: v for n, v in out.items() if n not in {f"lightning_interp.{m}" for m in lightning_interp._MODULES}}


def test_every_public_name_is_documented_and_stands_in_the_reference(site):
    names = public_names()
    assert len(names) > 100
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    shown = {line.split()[0] for line in inventory.splitlines()}
    for name, value in names.items():
        assert inspect.getdoc(value), name
        if hasattr(value, "__qualname__"):
            assert {name, f"{value.__module__}.{value.__qualname__}"} & shown, f"{name} is on no page of docs/reference"
        else:
            assert name in shown, f"{name} is on no page of docs/reference"


def test_pictures_are_made_by_the_script_and_shown():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    made = {p.name: p.stat().st_size for p in (ROOT / "docs" / "pictures").iterdir()}
    used = {name for text in PAGES.values() for name in re.findall(r"\]\((?:\.\./)?pictures/([^)]+)\)", text)}
    assert set(pictures.PICTURES) == set(made) == used
    assert max(made.values()) < 80_000


def test_spelling():
    command = [sys.executable, "-m", "codespell_lib", "--ignore-words-list", "leace,nd", "--skip", "*/static/*,*/results/*"]
    places = [*PAGES, "CHANGELOG.md", "docs/pictures.py", "lightning_interp", "examples", "benchmarks"]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# --- what is logged ---------------------------------------------------------------------------------------------------

KEYS = PAGES["docs/reference/keys.md"]
BY_LIGHTNING_OR_MODEL = {"epoch", "train_loss", "val_loss", "val_acc"}


@pytest.fixture(scope="module")
def everything():
    """The keys of a run with everything switched on, and the records of its monitor."""
    digit, grass = Concept("digit"), Confounder("grass", intervention="lightning_interp.demo:swap_background")
    places = {"output": "head", "target": "label", "inputs": "image"}
    monitor = ConceptMonitor(
        [digit, grass], ["encoder.conv4", "encoder.flatten"], measures=MEASURES, interactions=True, summary=False, **places
    )
    suppress = SuppressConfounder(grass, [digit], start_epoch=0, ramp_epochs=0, **places)
    discover = DiscoverFeatures("encoder.conv4", [digit], **places)
    keys = set()

    class Kept(DummyLogger):
        def log_metrics(self, metrics, step=None):
            keys.update(metrics)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=2, logger=Kept(), callbacks=[monitor, suppress, discover], log_every_n_steps=1, accelerator="cpu",
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(GrassyDigitsModel(width=4), datamodule=GrassyDigitsData(crops=2))
    assert keys - {"epoch"} == set(trainer.callback_metrics)
    return keys - BY_LIGHTNING_OR_MODEL, to_records(monitor.history)


def test_every_logged_key_stands_in_the_reference_and_the_other_way_round(everything):
    listed = re.findall(r"^\| `([^`]+)` \|", KEYS, re.MULTILINE)
    patterns = {key: re.compile("/".join(re.sub(r"\{\w+\}", "[^/]+", part) for part in key.split("/"))) for key in listed}
    assert not {key for key in everything[0] if not any(p.fullmatch(key) for p in patterns.values())}
    assert not {key for key, p in patterns.items() if not any(p.fullmatch(found) for found in everything[0])}


def test_every_measure_of_the_records_stands_in_the_reference(everything):
    assert not {r["measure"] for r in everything[1] if not re.search(rf"`{r['measure']}[`/]", KEYS)}


# --- links, examples, the demo ----------------------------------------------------------------------------------------


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
