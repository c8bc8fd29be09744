"""The console script, as a user calls it, and what importing the report loads."""

import os
import subprocess
import sys

import pytest
from histories import history
from test_log_directory import write

from lightning_interp import __version__
from lightning_interp.cli import main


def run(*arguments, code=None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "lightning_interp.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()})


def test_the_report_loads_neither_torch_nor_lightning_nor_plotly():
    code = (
        "import sys, lightning_interp, lightning_interp.cli; from lightning_interp import report; "
        "print({'torch', 'lightning', 'plotly', 'matplotlib'} & set(sys.modules))"
    )
    done = run(code=code)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_a_log_directory_becomes_a_report_without_torch(tmp_path):
    write(tmp_path / "plain", history(0.6))
    code = (
        "import sys; sys.modules['torch'] = sys.modules['lightning'] = None\n"  # an import of either would raise
        "from lightning_interp.cli import main\n"
        f"sys.exit(main(['report', {str(tmp_path)!r}, '-o', {str(tmp_path / 'r.html')!r}]))"
    )
    done = run(code=code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'r.html'}: 4.")
    assert "Leans on grass" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_as_a_module_it_says_what_is_wrong_and_exits_with_2(tmp_path):
    done = run("report", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"lightning-interp: '{tmp_path}' holds no TensorBoard event file. Add `interp.ConceptMonitor")
    assert "Traceback" not in done.stderr


def test_runs_are_chosen_by_name(tmp_path, capsys):
    for name in ("plain", "cut"):
        write(tmp_path / name, history(0.6))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html"), "--run", "pl*", "--title", "Mine & yours"]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<p class="run">plain</p>' in text
    assert '<p class="run">cut</p>' not in text
    assert "<h1>Mine &amp; yours</h1>" in text
    assert main(["report", str(tmp_path), "--run", "plian"]) == 2
    assert capsys.readouterr().err == "lightning-interp: `--run plian` matches none of the runs. Did you mean 'plain'?\n"


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    write(tmp_path / "plain", history(0.6))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "no" / "r.html")]) == 2
    assert "there is no directory" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"]])
def test_help_says_what_it_does(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "report" in text
    assert "TensorBoard log directory" in text


@pytest.mark.parametrize("arguments", [[], ["reprot", "x"], ["report"]])
def test_a_wrong_command_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: lightning-interp" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "says"), [("demo", "--agreement P"), ("explain", "--config FILE")])
def test_the_help_of_the_other_commands(command, says, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    assert says in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"lightning-interp {__version__}\n"
