"""The tab's routes, asked through TensorBoard's own application and data provider."""

import json
import re
import subprocess
import sys
from argparse import Namespace

import pytest
from board import HOSTILE, ROOT, RunWriter, event, tensorboard
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from lightning_interp import report
from lightning_interp.plugin import TabLoader
from lightning_interp.plugin.loader import SAMPLES
from lightning_interp.plugin.tab import SCRIPTS, STATIC, Tab
from lightning_interp.report.theme import THEMES
from lightning_interp.results import Effect, Share
from lightning_interp.summaries.event_log import PLUGIN_NAME, VERSION, event_content

HOME = "/data/plugin/lightning_interp"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Routes:
    """Asks the routes of a TensorBoard that reads a log directory."""

    def __init__(self, log_dir, samples=SAMPLES):
        self.multiplexer = EventMultiplexer(tensor_size_guidance={PLUGIN_NAME: samples, "scalars": 1000})
        self.log_dir = log_dir
        self.provider = MultiplexerDataProvider(self.multiplexer, str(log_dir))
        flags = Namespace(path_prefix="", samples_per_plugin={PLUGIN_NAME: samples}, logdir=str(log_dir), window_title="")
        self.client = Client(TensorBoardWSGIApp(flags, [TabLoader()], self.provider))
        self.reload()

    def reload(self):
        self.multiplexer.AddRunsFromDirectory(str(self.log_dir))
        self.multiplexer.Reload()

    def get(self, route, *series, **parameters):
        return self.client.get(f"{HOME}/{route}", query_string={"series": [json.dumps(s) for s in series], **parameters})

    def ask(self, route, *series, **parameters):
        response = self.get(route, *series, **parameters)
        assert response.status_code == 200, response.text
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.mimetype == "application/json"
        return json.loads(response.text)


def plain(value):
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def features(step, layer="conv1", samples=None):
    return {
        "version": 1, "step": step, "epoch": 0, "layer": layer, "unexplained": 0.2, "unnamed": 0.1, "features": [
            {"name": "feature 3", "contribution": 0.1, "causal": 0.5, "stability": None, "suspicion": 0.9, "flip": 0.2,
             "early": 0.1, "target": 0.4, "groups": {"digit=0": 1.5}, "promoted": None, "strongest": samples, "weakest": None}
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def routes(tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("runs")
    with RunWriter(log_dir / "plain") as run:
        for i in range(1, 4):
            run.event(event(10 * i, 0.2 * i), alarms=["step 20: it leans on grass"] if i == 2 else [])
            run.features(features(10 * i, samples={"kind": "image", "png": PNG, "count": 4}))
    with RunWriter(log_dir / "nested/suppressed") as run:
        for i in range(1, 3):
            run.event(event(15 * i, 0.1, layers=("conv1",), withheld=i == 2), prefix="val/a")
            for tag in ("penalty", "penalty_weight", "penalty_scale"):
                run.scalar(f"{tag}/grass", 0.5 * i, 15 * i)
        run.scalar("penalty/grass", float("nan"), 45)
        run.scalar("train_loss", 1.0, 0)
    with RunWriter(log_dir / HOSTILE.replace("/", "-")) as run:
        run.event(event(5, name=HOSTILE), alarms=[f"{HOSTILE}!"])
    with RunWriter(log_dir / "other") as run:
        run.scalar("train_loss", 1.0, 0)
    return Routes(log_dir)


PLAIN, SUPPRESSED = ["plain", ""], ["nested/suppressed", "val/a"]


def test_every_monitor_of_every_run_can_be_chosen(routes):
    found = routes.ask("runs")
    assert [(s["id"], s["label"], s["layers"]) for s in found["series"]] == [
        ([HOSTILE.replace("/", "-"), ""], HOSTILE.replace("/", "-"), []),
        (SUPPRESSED, "nested/suppressed (val/a)", []),
        (PLAIN, "plain", ["conv1"]),
    ]
    assert found["plotly"] is True
    assert set(found["templates"]) == set(THEMES)


def test_figures_over_time_are_those_of_the_report(routes):
    found = routes.ask("history", PLAIN, SUPPRESSED)
    first, second = found["series"]
    assert (first["steps"], first["epochs"], first["written"], first["drawn"]) == ([10, 20, 30], [1, 2, 3], 3, 3)
    assert (second["steps"], second["label"]) == ([15, 30], "nested/suppressed (val/a)")
    assert first["alarms"] == [[20, "step 20: it leans on grass"]]
    events = {
        "plain": [event(10 * i, 0.2 * i) for i in (1, 2, 3)],
        "nested/suppressed (val/a)": [event(15, 0.1), event(30, 0.1, withheld=True)],
    }
    for name in ("contributions", "effects", "groups"):
        figure = getattr(report, name)(events)
        assert found["figures"][name] == plain({"data": figure.data, "layout": figure.layout})
    assert [measure for measure, _ in found["measures"]] == ["decodability", "sensitivity", "tcav", "mediation"]


def test_penalties_come_from_the_runs_scalars(routes):
    figure = routes.ask("history", SUPPRESSED)["figures"]["penalties"]
    by_name = [(t["x"], t["y"]) for t in figure["data"] if t["type"] == "scatter"]
    assert by_name == [([15, 30, 45], [0.5, 1.0, None]), ([15, 30], [0.5, 1.0]), ([15, 30], [0.5, 1.0])]


@pytest.mark.parametrize(("step", "at"), [(10, 10), (19, 10), (29, 20), (2**53 - 1, 30)])
def test_an_event_is_the_last_at_or_before_the_step(routes, step, at):
    found = routes.ask("event", PLAIN, step=step, measure="decodability")
    (one,) = found["series"]
    true = event(at, 0.2 * (at // 10))
    assert (one["step"], one["epoch"], one["equation"], one["notes"]) == (at, at // 10, str(true), ["intervals are clustered"])
    assert one["alarms"] == (["step 20: it leans on grass"] if at == 20 else [])
    shares = {p["name"]: p["share"] for p in one["verdict"]["parts"]}
    assert shares == {name: s.value for name, s in true.contribution.items()}
    figure = report.equation({"plain": [true]})
    assert found["figures"]["equation"] == plain({"data": figure.data, "layout": figure.layout})
    heat = report.heatmap({"plain": [event(10 * i, 0.2 * i) for i in (1, 2, 3)]}, "decodability", at)
    assert found["figures"]["heatmap"] == plain({"data": heat.data, "layout": heat.layout})


def test_before_the_first_event_of_a_run_there_is_none(routes):
    found = routes.ask("event", PLAIN, SUPPRESSED, step=12)
    assert [one["step"] for one in found["series"]] == [10, None]
    assert routes.ask("event", PLAIN, step=9)["figures"]["equation"] == {"reason": "no runs were given."}
    assert routes.ask("records", PLAIN, step=9) == {"step": None, "total": 0, "records": []}


@pytest.mark.parametrize("measure", ["sensitivity", "mediation"])
def test_the_heat_map_has_the_measure_asked_for(routes, measure):
    heat = routes.ask("event", PLAIN, SUPPRESSED, step=30, measure=measure)["figures"]["heatmap"]
    assert [t["type"] for t in heat["data"]] == ["heatmap", "heatmap"]
    assert [len(t["y"]) for t in heat["data"]] == [2, 1]  # the runs have different layers


def test_a_measure_that_nobody_took_is_said(routes):
    heat = routes.ask("event", PLAIN, step=30, measure="tcavv")["figures"]["heatmap"]
    assert heat["reason"].startswith("nothing of 'tcavv' was measured")


def test_verdicts_say_what_the_model_leans_on(routes):
    found = routes.ask("event", PLAIN, SUPPRESSED, step=30)["series"]
    assert [one["verdict"]["level"] for one in found] == ["bad", "some"]
    assert found[0]["verdict"]["text"] == "Leans on grass: 60.0 % of the output's variance."


def test_records_are_those_of_the_event(routes):
    found = routes.ask("records", SUPPRESSED, step=30)
    true = event(30, 0.1, layers=("conv1",), withheld=True).records()
    assert found == {"step": 30, "total": len(true), "records": plain(true)}
    (withheld,) = [r for r in found["records"] if r["measure"] == "effect" and r["variable"] == "grass" and r["by"] is None]
    assert (withheld["value"], withheld["note"]) == (None, "too few rows")
    assert routes.ask("records", SUPPRESSED, step=30, offset=3)["records"] == plain(true[3:])


def test_features_come_with_their_samples(routes):
    found = routes.ask("features", PLAIN, SUPPRESSED, step=25)
    (one,) = found["series"]
    assert (one["label"], one["layer"], one["step"], one["unnamed"]) == ("plain", "conv1", 20, 0.1)
    assert one["features"][0]["strongest"] == {"kind": "image", "png": PNG, "count": 4}
    assert one["features"][0]["groups"] == {"digit=0": 1.5}
    assert found["figures"]["features"]["data"][0]["type"] == "bar"
    assert routes.ask("features", SUPPRESSED, step=25) == {"series": [], "problems": [], "figures": {"features": None}}


@pytest.mark.parametrize("step", [10, 2**53 - 1])
def test_a_large_feature_that_nobody_has_named_is_the_verdict(tmp_path, step):
    with RunWriter(tmp_path) as run:
        run.event(event(10, 0.0))
        content = features(10)
        content["features"][0]["contribution"] = 0.75
        run.features(content)
    said = Routes(tmp_path).ask("event", [".", ""], step=step)["series"][0]["verdict"]
    assert (said["level"], said["text"]) == ("some", "Uses feature 3, which nobody has named: 75.0 % of the output's variance.")


def test_names_are_escaped_in_what_plotly_reads_and_only_there(routes):
    hostile = [HOSTILE.replace("/", "-"), ""]
    figures = {**routes.ask("history", hostile)["figures"], **routes.ask("event", hostile, step=5)["figures"]}
    for figure in figures.values():
        assert "<script" not in json.dumps(figure)
    assert "&lt;script&gt;" in json.dumps(figures["contributions"])
    records = routes.ask("records", hostile, step=5)["records"]
    assert HOSTILE in {r["variable"] for r in records}


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_log_directory_without_ours_has_nothing_to_choose(tmp_path):
    with RunWriter(tmp_path / "run") as run:
        run.scalar("train_loss", 1.0, 0)
    assert Routes(tmp_path).ask("runs")["series"] == []
    (tmp_path / "empty").mkdir()
    assert Routes(tmp_path / "empty").ask("runs")["series"] == []


def test_what_cannot_be_read_is_said_once_and_the_rest_is_shown(tmp_path):
    with RunWriter(tmp_path) as run:
        run.event(event(10))
        newer = json.dumps({**event_content(event(20)), "version": VERSION + 1}).encode()
        for step, text in ((20, newer), (21, newer), (22, b'{"version": 1, "st'), (23, b"\xff"), (24, b"[]")):
            run.raw(text, step=step)
        odd = {
            "version": 1,
            "step": 30,
            "epoch": "x",
            "records": [{}, {"measure": ["x"]}, {"measure": "effect", "value": "7", "variable": 3}],
        }
        run.raw(json.dumps(odd).encode(), step=30)
        said = b'"alarms": 7, "number": "x", "records": [{"measure": "group", "value": NaN}]'
        run.raw(b'{"version": 1, "step": 40, "epoch": 4, ' + said + b"}", step=40)
    found = Routes(tmp_path)
    (one,) = found.ask("history", [".", ""])["series"]
    assert one["steps"] == [10, 30, 40]
    assert one["problems"][0] == "step 20: written in version 2 of the event log; this lightning_interp reads version 1"
    assert [p[:22] for p in one["problems"][1:]] == [
        "step 22: not JSON: Unt",
        "step 23: not JSON: 'ut",
        "step 24: expected a JS",
    ]
    assert found.ask("records", [".", ""], step=30)["records"][2] == {
        "step": 30, "epoch": None, "measure": "effect", "layer": None, "variable": "3", "by": None, "value": None, "low": None,
        "high": None, "note": None,
    }  # fmt: skip
    for step in (10, 30, 40):
        found.ask("event", [".", ""], step=step)


def test_numbers_of_any_size_are_answered(tmp_path):
    with RunWriter(tmp_path) as run:
        share, effect = Share(1e308, -1e308, -1e308, 1.7e308), Effect(-1e308, -1.7e308, 1.7e308)
        huge = event(10, contribution={"grass": share}, effect={"grass": effect})
        run.event(huge)
        run.raw(b'{"version": 1, "step": 20, "records": [{"measure": "group", "value": 1' + 400 * b"0" + b"}]}")
        run.raw(b'{"version": 1, "step": 1' + 400 * b"0" + b', "records": []}')
    found = Routes(tmp_path)
    history = found.ask("history", [".", ""])
    assert history["series"][0]["steps"] == [10, 20]
    assert "whole number" in history["series"][0]["problems"][0]
    assert found.ask("event", [".", ""], step=10)["figures"]["equation"]["data"]
    assert found.ask("records", [".", ""], step=20)["records"][0]["value"] is None


def test_a_figure_that_cannot_be_drawn_leaves_the_others(routes, monkeypatch, caplog):
    def fail(_):
        raise KeyError("grass")

    monkeypatch.setattr(report, "groups", fail)
    figures = routes.ask("history", PLAIN)["figures"]
    assert figures["groups"] == {"reason": "This could not be drawn: KeyError: 'grass'"}
    assert figures["contributions"]["data"]
    assert "could not be drawn" in caplog.text


def test_a_file_that_ends_within_a_record_shows_what_came_before(tmp_path):
    with RunWriter(tmp_path / "run") as run:
        run.event(event(10))
        run.event(event(20))
    (file,) = (tmp_path / "run").iterdir()
    file.write_bytes(file.read_bytes()[:-200])
    assert Routes(tmp_path).ask("history", ["run", ""])["series"][0]["steps"] == [10]


def test_samples_that_are_none_are_left_out(tmp_path):
    bad = [
        {"kind": "image", "png": '"><script>alert(1)</script>', "count": 1}, {"kind": "image", "png": 3}, {"kind": "film"}, "x",
        {"kind": "rows", "columns": "x", "rows": 3},
    ]  # fmt: skip
    good = {"kind": "rows", "columns": ["a"], "rows": [[1.0], ["x"], 3]}
    with RunWriter(tmp_path) as run:
        content = features(10, samples={"kind": "text", "texts": ["<b>moo</b>", 3]})
        content["features"] += [{**content["features"][0], "strongest": b} for b in [*bad, good]]
        content["features"].append({"name": None})
        run.features(content)
    found = Routes(tmp_path).ask("features", [".", ""], step=10)["series"][0]["features"]
    assert found[0]["strongest"] == {"kind": "text", "texts": ["<b>moo</b>", "3"]}
    assert [f["strongest"] for f in found[1:6]] == [None] * 5
    assert found[6]["strongest"] == {"kind": "rows", "columns": ["a"], "rows": [[1.0], [None]]}
    assert found[7]["suspicion"] is None


# --- a run that is being written, or is long --------------------------------------------------------------------------


def test_what_is_written_meanwhile_is_there_at_the_next_look(tmp_path):
    with RunWriter(tmp_path) as run:
        run.event(event(10))
        run.events.flush()
        found = Routes(tmp_path)
        before = found.ask("runs")["series"][0]
        assert found.ask("history", [".", ""])["series"][0]["steps"] == [10]
        run.event(event(20))
        run.events.flush()
        found.reload()
        after = found.ask("runs")["series"][0]
        assert (before["step"], after["step"]) == (9, 19)
        assert after["time"] > before["time"]
        assert found.ask("history", [".", ""])["series"][0]["steps"] == [10, 20]


def test_what_is_parsed_is_not_parsed_again(tmp_path, monkeypatch):
    with RunWriter(tmp_path) as run:
        run.event(event(10))
        run.events.flush()
        found = Routes(tmp_path)
        found.ask("history", [".", ""])
        from lightning_interp.plugin import logged

        parsed = []
        monkeypatch.setattr(logged, "_moment", lambda *given, real=logged._moment: parsed.append(given) or real(*given))
        found.ask("history", [".", ""])
        assert not parsed
        run.event(event(20))
        run.events.flush()
        found.reload()
        found.ask("history", [".", ""])
        assert len(parsed) == 1


def test_the_newest_event_is_read_alone_before_the_history_is(tmp_path, monkeypatch):
    from lightning_interp.plugin import logged

    with RunWriter(tmp_path) as run:
        for i in range(1, 9):
            run.event(event(10 * i))
    found, parsed = Routes(tmp_path), []
    monkeypatch.setattr(logged, "_moment", lambda *given, real=logged._moment: parsed.append(given) or real(*given))
    assert found.ask("event", [".", ""], step=2**53 - 1)["series"][0]["step"] == 80
    assert len(parsed) == 1
    found.ask("history", [".", ""])
    assert found.ask("event", [".", ""], step=2**53 - 1)["series"][0]["step"] == 80
    assert len(parsed) == 9


def test_of_two_events_at_one_step_the_later_counts(tmp_path):
    with RunWriter(tmp_path) as run:
        run.event(event(10, 0.1))
        run.event(event(20, 0.1))
        run.number = 0  # resumed from the first: a new process counts anew
        run.event(event(20, 0.5))
    found = Routes(tmp_path)
    one = found.ask("history", [".", ""])["series"][0]
    assert (one["steps"], one["written"]) == ([10, 20], 3)
    assert found.ask("event", [".", ""], step=20)["series"][0]["verdict"]["parts"][0]["share"] == 0.5


def test_a_sample_says_of_how_many(tmp_path):
    with RunWriter(tmp_path) as run:
        for i in range(1, 61):
            run.event(event(i, 0.01 * i))
    one = Routes(tmp_path, samples=20).ask("history", [".", ""])["series"][0]
    assert (len(one["steps"]), one["steps"][-1], one["written"]) == (20, 60, 60)


def test_of_a_long_run_the_figures_draw_some_events_with_the_last_and_the_alarms(tmp_path):
    with RunWriter(tmp_path / "long") as run:
        for i in range(1, 431):
            run.event(event(i, 0.001 * i, layers=()), alarms=["look"] if i == 101 else [])
    one = Routes(tmp_path).ask("history", ["long", ""])
    series = one["series"][0]
    assert len(series["steps"]) == 430
    drawn = sorted({x for t in one["figures"]["contributions"]["data"] for x in t["x"]})
    assert len(drawn) == series["drawn"]
    assert 380 <= len(drawn) <= 401
    assert {1, 101, 430} <= set(drawn)


# --- what is asked wrongly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("history", "`series` should be given 1 to 50 times, but is given 0 times"),
        ("history?series=plain", "`series` should be a run and a prefix as JSON"),
        ('history?series=["a"]', "`series` should be a run and a prefix as JSON"),
        ('history?series=[1,2]', "`series` should be a run and a prefix as JSON"),
        ("history?series=" + "[" * 5000, "`series` should be a run and a prefix as JSON"),
        ('event?series=["plain",""]', "`step` should be a whole number, but is None"),
        ('event?series=["plain",""]&step=x', "`step` should be a whole number, but is 'x'"),
        ('records?series=["a",""]&series=["b",""]&step=1', "`series` should be given 1 to 1 times, but is given 2 times"),
    ],
)  # fmt: skip
def test_a_wrong_question_gets_an_answer_in_json(routes, address, says):
    response = routes.client.get(f"{HOME}/{address}")
    assert response.status_code == 400
    assert response.mimetype == "application/json"
    assert says in json.loads(response.text)["error"]


def test_a_run_that_is_not_there_is_empty(routes):
    assert routes.ask("history", ["no such", ""])["series"][0]["steps"] == []
    assert routes.ask("event", ["no such", ""], step=1)["series"][0]["step"] is None


@pytest.mark.parametrize("route", ["runs", "history", "event", "records", "features", "index.js", "style.css", "plotly.min.js"])
def test_nothing_is_changed_from_outside(routes, route):
    assert routes.client.post(f"{HOME}/{route}").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/nothing",
        "/static/index.js",
        "/../tab.py",
        "/..%2ftab.py",
        "/%2e%2e/tab.py",
        "/tab.py",
        "/index.js/../../tab.py",
        "//etc/passwd",
    ],
)
def test_only_what_is_listed_is_served(routes, path):
    response = routes.client.get(HOME + path)
    assert response.status_code == 404
    assert "import" not in response.text


def test_a_problem_within_a_route_is_an_answer_and_tensorboard_goes_on(routes, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(routes.provider, "list_tensors", fail)
        for route in ("runs", "history"):
            response = routes.get(route, PLAIN)
            assert response.status_code == 500
            assert json.loads(response.text) == {"error": "RuntimeError: the disk is gone"}
            assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "the disk is gone" in caplog.text
    assert routes.ask("runs")["series"]


# --- what is served ---------------------------------------------------------------------------------------------------


def test_every_file_of_the_page_is_served_and_fetches_nothing_from_elsewhere(routes):
    folder = ROOT / "lightning_interp" / "plugin" / "static"
    assert {name for name, _ in STATIC.values()} == {file.name for file in folder.iterdir()}
    for route, (name, mimetype) in STATIC.items():
        response = routes.client.get(HOME + route)
        assert response.status_code == 200
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.mimetype == mimetype
        text = (folder / name).read_text()
        assert response.text == text
        assert "http://" not in text
        assert "https://" not in text
        assert not [way for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if way in text]
    texts = [(folder / f"{name}.js").read_text() for name in SCRIPTS]
    imported = {found for text in texts for found in re.findall(r'^import .* from "\./(\w+)\.js";$', text, re.MULTILINE)}
    assert imported | {"index"} == set(SCRIPTS)


def test_plotly_comes_from_the_installed_package_and_may_be_kept(routes):
    response = routes.client.get(f"{HOME}/plotly.min.js")
    assert response.status_code == 200
    assert response.mimetype == "text/javascript"
    assert "max-age=" in response.headers["Cache-Control"]
    assert b"plotly.js v" in response.data[:300]


def test_without_plotly_the_tab_says_so_and_the_rest_works(routes, monkeypatch):
    from lightning_interp.plugin import tab, views

    monkeypatch.setattr(tab, "find_spec", lambda name: None)
    monkeypatch.setattr(views, "find_spec", lambda name: None)
    response = routes.client.get(f"{HOME}/plotly.min.js")
    assert response.status_code == 404
    assert "pip install" in json.loads(response.text)["error"]
    assert routes.ask("runs")["plotly"] is False
    assert routes.ask("event", PLAIN, step=30)["series"][0]["verdict"]["level"] == "bad"


def test_the_tab_is_shown_by_its_data_and_needs_no_multiplexer(routes):
    made = TabLoader().load(TBContext(data_provider=routes.provider, multiplexer=None))
    assert isinstance(made, Tab)
    assert not made.is_active()
    assert made.data_plugin_names() == (PLUGIN_NAME,)
    listing = json.loads(routes.client.get("/data/plugins_listing").text)[PLUGIN_NAME]
    assert listing["enabled"] is True
    assert listing["loading_mechanism"] == {"type": "IFRAME", "module_path": f"{HOME}/index.js"}


def test_a_tab_that_cannot_be_made_leaves_tensorboard_alone(caplog):
    assert TabLoader().load(None) is None
    assert "not shown" in caplog.text


def test_enough_events_are_asked_for_unless_the_user_says_how_many():
    flags = Namespace(samples_per_plugin={})
    TabLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {PLUGIN_NAME: SAMPLES}
    flags = Namespace(samples_per_plugin={PLUGIN_NAME: 7, "images": 3})
    TabLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {PLUGIN_NAME: 7, "images": 3}
    TabLoader().fix_flags(Namespace())


def test_the_plugin_needs_neither_torch_nor_lightning_nor_plotly():
    code = """
import sys
from tensorboard.plugins.base_plugin import TBContext
from lightning_interp.plugin import TabLoader
tab = TabLoader().load(TBContext(data_provider=object()))
tab.get_plugin_apps(), tab.frontend_metadata(), tab._views
print(sorted({"torch", "lightning", "pytorch_lightning", "matplotlib", "plotly", "torchmetrics", "scipy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


# --- TensorBoard as it is started -------------------------------------------------------------------------------------


def test_every_loader_of_tensorboard_gives_the_same_answers(routes, tmp_path):
    questions = [
        ("history", {"series": [json.dumps(PLAIN), json.dumps(SUPPRESSED)]}),
        ("event", {"series": [json.dumps(PLAIN)], "step": 20, "measure": "mediation"}),
        ("records", {"series": json.dumps(SUPPRESSED), "step": 30}),
        ("features", {"series": json.dumps(PLAIN), "step": 30}),
    ]
    found = {}
    for mode in ("true", "false", "auto"):
        with tensorboard(routes.log_dir, tmp_path, "--load_fast", mode) as board:
            # the step is in a series before all of it is read
            board.wait(
                lambda runs: [(r["label"], r["step"]) for r in runs][1:] == [("nested/suppressed (val/a)", 29), ("plain", 29)]
            )
            found[mode] = [board.ask(route, **parameters) for route, parameters in questions]
            assert board.ask("nothing")[0] == 404
        assert not [line for line in board.said if "Traceback" in line or "In 3.0, this warning" in line]
    assert all(status == 200 for status, _ in found["true"])
    assert found["true"] == found["false"] == found["auto"]
