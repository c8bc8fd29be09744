"""The wheel: what is in it, that it runs from outside, and that its types are seen there."""

import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import lightning_interp

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow

USER = """
import lightning_interp as interp

digit = interp.Concept("digit", kind="binary")
monitor = interp.ConceptMonitor([digit], layers=["encoder.*"], output="head")
event = monitor.latest
if event is not None:
    reveal_type(event.contribution["digit"].value)
interp.ConceptMonitor([digit], layers=3)
interp.Concept("digit", kind="bianry")
reveal_type(interp.explain)
"""


def run(*command, cwd, code=0):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory):
    """An environment into which the wheel is unpacked, with everything else from this one."""
    folder = tmp_path_factory.mktemp("outside")
    venv.create(folder / "env", with_pip=False)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name == f"lightning_interp-{lightning_interp.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(ROOT)) for p in (ROOT / "lightning_interp").rglob("*") if p.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert {n for n in names if not n.startswith("lightning_interp-")} == package
    assert {"lightning_interp/py.typed", "lightning_interp/demo/walk.py"} <= names
    assert [n for n in names if n.startswith("lightning_interp/plugin/static/")]
    assert [n for n in names if n.startswith("lightning_interp/report/static/")]
    entries = (
        zipfile.ZipFile(wheel).read(f"lightning_interp-{lightning_interp.__version__}.dist-info/entry_points.txt").decode()
    )
    assert "lightning-interp = lightning_interp.cli:main" in entries
    assert "lightning_interp = lightning_interp.plugin:TabLoader" in entries


def test_the_command_runs_from_outside(outside):
    python = outside / "env" / "bin" / "python"
    where = run(python, "-c", "import lightning_interp; print(lightning_interp.__file__)", cwd=outside).strip()
    assert where.startswith(str(outside))
    out = run(python, "-m", "lightning_interp.cli", "demo", "--epochs", "1", "--log-dir", outside / "runs", cwd=outside)
    assert "test digits                      plain  suppressed" in out


def test_types_are_seen_from_outside(outside):
    (outside / "user.py").write_text(USER)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        outside / "env" / "bin" / "python",
        "--cache-dir",
        outside / "c",
    ]
    out = run(*command, "user.py", cwd=outside, code=1)
    assert 'Revealed type is "float | None"' in out or 'Revealed type is "Union[builtins.float, None]"' in out
    assert 'Argument "layers" to "ConceptMonitor" has incompatible type "int"' in out
    assert 'Argument "kind" to "Concept" has incompatible type' in out
    assert "Event" in out.split("Revealed type is")[-1]
    assert "Found 2 errors in 1 file" in out
