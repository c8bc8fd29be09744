"""The tab serves its own list of files, whatever the address says, and nothing of the disk beside it."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from board import RunWriter, event
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from werkzeug.test import Client, EnvironBuilder

import lightning_interp
from lightning_interp.plugin import TabLoader
from lightning_interp.plugin.tab import STATIC
from lightning_interp.summaries.event_log import PLUGIN_NAME

HOME = "/data/plugin/lightning_interp"
FOLDER = Path(lightning_interp.__file__).parent / "plugin" / "static"
SECRET = "not for anybody"
ASKED = [
    "../tab.py", "../../__init__.py", "static/../../tab.py", "index.js/../../tab.py", "index.js/", "index.js/..",
    "//etc/passwd", "/etc/passwd", "..", "../", ".", "", "static", "static/index.js", "static/", "../static/index.js",
    "....//....//etc/passwd", "%2e%2e/tab.py", "%2e%2e%2ftab.py", "..%2ftab.py", "%252e%252e%252ftab.py",
    "..%5ctab.py", "..\\tab.py", "..%c0%aftab.py", "..;/tab.py", "index.js%00.py", "index.js%00", "%00", "INDEX.JS",
    "index.js.map", ".git/config", "file:///etc/passwd", "~root/.profile", "secret.txt",
    "../../../../../../../../etc/passwd", "plotly.min.js/../../../../etc/passwd", "tab.py", "__init__.py",
    "style.css%2f..%2f..%2ftab.py", "views.py", "con", "index.js:$DATA",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("runs")
    (log_dir / "secret.txt").write_text(SECRET)
    (log_dir.parent / "secret.txt").write_text(SECRET)
    with RunWriter(log_dir / "run") as run:
        run.event(event(5))
    multiplexer = EventMultiplexer(tensor_size_guidance={PLUGIN_NAME: 10})
    multiplexer.AddRunsFromDirectory(str(log_dir))
    multiplexer.Reload()
    flags = Namespace(path_prefix="", samples_per_plugin={PLUGIN_NAME: 10}, logdir=str(log_dir), window_title="")
    return Client(TensorBoardWSGIApp(flags, [TabLoader()], MultiplexerDataProvider(multiplexer, str(log_dir))))


def ours(body):
    """Whether it is one of the files that the tab serves."""
    return body in {(FOLDER / name).read_bytes() for name, _ in STATIC.values()}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "as it stands"])
def test_no_address_leads_out_of_the_list(client, asked, raw):
    builder = EnvironBuilder(path="/")
    environ = builder.get_environ()
    environ["PATH_INFO"] = f"{HOME}/{asked}" if raw else EnvironBuilder(path=f"{HOME}/{asked}").get_environ()["PATH_INFO"]
    answer = client.open(environ)
    body = answer.get_data()
    assert SECRET.encode() not in body
    assert b"root:" not in body
    assert b"class Tab" not in body
    assert b"import annotations" not in body
    # Either nothing, or, where TensorBoard itself reads the address as one of the list, that file.
    assert answer.status_code in (301, 302, 308, 400, 404) or ours(body)


def test_what_is_served_is_the_folder_and_no_more(client):
    assert {name for name, _ in STATIC.values()} == {p.name for p in FOLDER.iterdir() if p.is_file()}
    for route, (name, kind) in STATIC.items():
        answer = client.get(HOME + route)
        assert answer.status_code == 200
        assert answer.get_data() == (FOLDER / name).read_bytes()
        assert answer.mimetype == kind
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not [p for p in FOLDER.iterdir() if p.is_symlink()]


@pytest.mark.parametrize("route", ["history", "event", "records", "features"])
@pytest.mark.parametrize("run", ["../secret.txt", "/etc/passwd", "..", "\x00", "run/../../secret.txt", "<script>", "run\n"])
def test_a_run_is_looked_for_among_the_runs_and_not_on_the_disk(client, route, run):
    for series in ([run, ""], ["run", run]):
        answer = client.get(f"{HOME}/{route}", query_string={"series": json.dumps(series), "step": 5})
        assert answer.status_code == 200
        assert answer.mimetype == "application/json"
        assert SECRET not in answer.text
        assert "root:" not in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("route", ["runs", "index.js", "plotly.min.js", "history"])
def test_nothing_can_be_written(client, route, method):
    answer = client.open(f"{HOME}/{route}", method=method, data=b"x" * 10)
    assert answer.status_code in (404, 405)


@pytest.mark.parametrize(
    "query",
    [{"series": "<script>alert(1)</script>"}, {"series": '["run", ""]', "step": "<script>"},
     {"series": '["run", "<b>"]', "step": 5},
     {"series": '["run", ""]', "step": 5, "measure": "<script>"}],
)  # fmt: skip
def test_what_is_said_of_a_bad_address_is_no_page(client, query):
    answer = client.get(f"{HOME}/event", query_string=query)
    assert answer.status_code in (200, 400)
    assert answer.mimetype == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    json.loads(answer.text)
