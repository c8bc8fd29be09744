"""Figures against the records that they are made from."""

import html
import json

import pytest
from histories import EVIL, NAMES, REASON, discovered, event, history
from hypothesis import given
from hypothesis import strategies as st

from lightning_interp import report, to_records
from lightning_interp.discovery.features import FeatureEvent
from lightning_interp.errors import InterpError
from lightning_interp.events import Effect, Event, Share
from lightning_interp.report.contributions import widths
from lightning_interp.report.figure import script_json
from lightning_interp.report.theme import COOL, WARM, styles
from lightning_interp.report.wording import escape

SCALARS = {
    "penalty/grass": [(1, 0.5), (2, 0.25)],
    "penalty_weight/grass": [(1, 1.0), (2, 2.0)],
    "penalty_scale/grass": [(1, 1.0), (2, 0.5)],
    "val_loss": [(1, 9.0)],
}


def named(figure, name):
    return [t for t in figure.data if t.get("name") == name]


def one(figure, name):
    (trace,) = named(figure, name)
    return trace


def every(source, step=None):
    """All figures of a source."""
    layered = ("decodability", "sensitivity", "mediation", "entanglement", "collateral_decodability")
    return [
        report.equation(source),
        report.contributions(source),
        report.effects(source),
        report.groups(source),
        *(report.heatmap(source, measure) for measure in layered),
        report.heatmap(source, "mediation", by="grass"),
        report.penalties(SCALARS, {2: ["an alarm"]}),
        report.features([discovered()]),
    ]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_contributions_are_the_records_and_sum_to_one():
    figure = report.contributions(history(0.6, 0.5, 0.3))
    assert [t["name"] for t in figure.data] == ["grass", "digit", "unexplained"]
    assert one(figure, "grass")["y"] == [0.6, 0.5, 0.3]
    assert one(figure, "grass")["x"] == [10, 20, 30]
    for shares in zip(*(t["y"] for t in figure.data)):
        assert sum(shares) == pytest.approx(1)
    assert figure.layout["barmode"] == "relative"
    assert "debiased 59.0 %" in one(figure, "grass")["hovertext"][0]


def test_interactions_stand_between_the_variables_and_what_is_unexplained():
    e = Event(1, 0, 60, "balanced", "val", "binary", contribution={
        "unexplained": Share(0.2), "interactions": Share(0.1), "digit": Share(0.7)
    })  # fmt: skip
    assert [t["name"] for t in report.contributions([e]).data] == ["digit", "interactions", "unexplained"]


def test_effects_carry_intervals_and_the_truth():
    figure = report.effects(history(0.6, 0.5))
    assert one(figure, "grass")["y"] == [6.0, 5.0]
    assert one(figure, "do(grass)")["y"] == [6.5, 5.5]
    band = next(t for t in figure.data if t.get("fill") == "toself" and t["legendgroup"] == "grass")
    assert list(zip(band["x"], band["y"])) == [(10, 8.0), (20, 7.0), (20, 4.0), (10, 5.0)]


def test_a_withheld_value_is_a_gap_with_the_reason():
    figure = report.effects(history(0.6, None, 0.5, None, None, 0.4))
    assert one(figure, "grass")["y"] == [6.0, None, 5.0, None, None, 4.0]
    assert one(figure, "grass")["connectgaps"] is False
    band = next(t for t in figure.data if t.get("fill") == "toself" and t["legendgroup"] == "grass")
    assert band["x"] == [10, 10, None, 30, 30, None, 60, 60]
    crosses = one(figure, "withheld")
    assert crosses["x"] == [20, 40, 50]
    assert html.unescape(crosses["hovertext"][0]).startswith(f"grass: withheld: {REASON}")


def test_a_withheld_share_leaves_the_bar_short():
    figure = report.contributions(history(0.6, None))
    assert one(figure, "grass")["x"] == [10]
    gap = one(figure, "withheld")
    assert gap["x"] == [20]
    assert gap["y"] == [pytest.approx(0.6)]
    assert escape(REASON) in gap["hovertext"][0]


def test_nan_is_withheld_too():
    records = [{**r, "value": float("nan")} if r["variable"] == "grass" else r for r in to_records(history(0.6))]
    for figure in (report.contributions(records), report.effects(records), report.heatmap(records), report.equation(records)):
        json.dumps(figure.to_dict(), allow_nan=False)
    assert report.heatmap(records).data[0]["z"] == [[0.2, None], [pytest.approx(0.3), None]]


def test_the_equation_has_every_term_with_its_interval():
    figure = report.equation(history(0.6, 0.5), step=19)
    (title,) = (a["text"] for a in figure.layout["annotations"])
    assert title == "<b>step 10</b><br>logit = −0.25 + 2.00·digit [1.50, 2.50] + 6.00·grass [5.00, 8.00] + unexplained"
    grass = one(figure, "grass")
    assert (grass["x"], grass["error_x"]["array"], grass["error_x"]["arrayminus"]) == ([6.0], [2.0], [1.0])
    assert one(figure, "do(·): by intervention")["x"] == [6.5]


def test_from_records_the_equation_has_no_constant():
    (title,) = (a["text"] for a in report.equation(to_records(history(0.6))).layout["annotations"])
    assert title.endswith("output = 2.00·digit [1.50, 2.50] + 6.00·grass [5.00, 8.00] + unexplained")


def test_a_long_equation_is_broken_into_lines():
    names = [f"variable {i}" for i in range(12)]
    e = Event(
        1,
        0,
        60,
        "balanced",
        "val",
        "binary",
        effect={n: Effect(1.0, 0.5, 1.5) for n in names},
        magnitude=dict.fromkeys(names, 1.0),
    )
    (title,) = (a["text"] for a in report.equation([e]).layout["annotations"])
    lines = title.split("<br>")
    assert len(lines) > 3
    assert max(map(len, lines)) <= 112
    assert " ".join(lines[1:]).count("·variable") == 12


def test_effects_of_one_variable_by_level():
    found = {"a": Effect(1.0, 0.5, 1.5), "b": Effect(-1.0, -1.5, -0.5)}
    events = [Event(s, 0, 60, "balanced", "val", "binary", effect={"breed": found}, magnitude={"breed": 2.0}) for s in (1, 2)]
    figure = report.effects(events, "breed")
    assert one(figure, "a")["y"] == [1.0, 1.0]
    assert one(figure, "b")["y"] == [-1.0, -1.0]
    assert one(report.effects(events), "breed")["y"] == [2.0, 2.0]
    with pytest.raises(InterpError, match=r"`variable='bred'` has no effects by class or level. Did you mean 'breed'\?"):
        report.effects(events, "bred")


def test_heat_maps_are_the_last_event_not_after_the_step():
    events = history(0.6, None)
    assert report.heatmap(events, step=10).data[0]["z"] == [[0.2, 0.9], [pytest.approx(0.3), 0.9]]
    figure = report.heatmap(events)
    assert figure.data[0]["z"] == [[0.2, None], [pytest.approx(0.3), None]]
    assert escape(REASON) in figure.data[0]["hovertext"][0][1]
    assert figure.data[0]["x"] == ["digit", "grass"]
    assert figure.data[0]["y"] == ["enc.0", "enc.1"]
    assert figure.layout["yaxis"]["autorange"] == "reversed"


def test_mediation_shows_own_effects_or_those_of_one_erased():
    events = history(0.6)
    assert report.heatmap(events, "mediation").data[0]["z"] == [[0.25, 0.75]] * 2
    assert report.heatmap(events, "mediation", by="digit").data[0]["z"] == [[0.25, 0.75]] * 2
    with pytest.raises(InterpError, match="Did you mean 'digit'"):
        report.heatmap(events, "mediation", by="digi")


def test_colours_of_a_sensitivity_span_all_steps():
    axis = report.heatmap(history(0.6), "sensitivity").layout["coloraxis"]
    assert (axis["cmin"], axis["cmax"]) == (-1.5, 1.5)


def test_entanglement_has_a_column_for_every_pair():
    assert report.heatmap(history(0.6), "entanglement").data[0]["x"] == ["digit × grass"]


def test_the_worst_group_is_marked():
    figure = report.groups(history(0.6, 0.5))
    assert one(figure, "grass=0")["y"] == [0.9, 0.9]
    assert one(figure, "worst group")["y"] == [0.51, 0.52]
    assert "grass=1" in one(figure, "worst group")["hovertext"][0]
    assert one(figure, "worst group")["line"]["width"] > one(figure, "grass=1")["line"]["width"]
    assert [a["text"] for a in figure.layout["annotations"] if "worst" in a["text"]] == ["worst: grass=1, 52.0 %"]


def test_penalties_share_one_axis_with_what_was_said():
    figure = report.penalties(SCALARS, {2: ["it is held"]})
    lines = named(figure, "grass")
    assert [(t["x"], t["y"]) for t in lines] == [([1, 2], [0.5, 0.25]), ([1, 2], [1.0, 2.0]), ([1, 2], [1.0, 0.5])]
    assert [figure.layout[f"xaxis{n}"].get("matches") for n in ("", 2, 3)] == [None, "x", "x"]
    assert one(figure, "alarm")["x"] == [2]
    assert "it is held" in one(figure, "alarm")["hovertext"][0]
    assert [s["x0"] for s in figure.layout["shapes"]] == [2]


def test_penalties_of_a_run_come_with_its_alarms():
    run = report.Run([], scalars={"mine/penalty/grass/HSIC": [(1, 0.5)]}, alarms={7: ["over"]})
    figure = report.penalties({"plain": report.Run([]), "mine": run})
    assert [t["name"] for t in figure.data] == ["mine/grass/HSIC", "alarm"]
    with pytest.raises(InterpError, match="no penalty among the scalars"):
        report.penalties({"val_loss": [(1, 1.0)]})


def test_features_stand_in_the_order_of_their_suspicion():
    figure = report.features([discovered(10), discovered(20)], step=15)
    (bars,) = figure.data
    assert bars["y"] == ["feature 10", "feature 11: stripes", "feature 12"]
    assert bars["x"] == [0.1, 0.05, pytest.approx(0.1 / 3)]
    assert bars["text"] == ["suspicion 0.90", "suspicion 0.80", "suspicion 0.70"]
    assert "step 10" in figure.layout["annotations"][0]["text"]
    with pytest.raises(InterpError, match="add DiscoverFeatures"):
        report.features([discovered(10)], step=5)


def test_the_history_of_a_discovery_draws_what_it_logged():
    logged = discovered()
    event = FeatureEvent.from_dict({"n": 120, "weights": "balanced", "notes": [], **logged})
    assert report.features([event]).data == report.features([logged]).data


def test_a_layer_where_nothing_was_found_is_no_hindrance():
    empty = {**discovered(layer="empty"), "features": [], "unexplained": None, "unnamed": None}
    assert report.features([empty, discovered()]).data[0]["x"] == []


# --- several runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [report.contributions, report.effects, report.groups, report.equation])
def test_runs_stand_side_by_side_on_the_same_axes(draw):
    figure = draw({"plain": history(0.6, 0.5), "cut <b>": history(0.02, 0.01)})
    axes = {t["yaxis"] for t in figure.data}
    assert axes == {"y", "y2"}
    assert figure.layout["yaxis2"]["matches"] == "y"
    assert figure.layout["xaxis2"]["matches"] == "x"
    assert sum(a["text"].find("cut &lt;b&gt;") >= 0 for a in figure.layout["annotations"]) == 1
    shown = [t["name"] for t in figure.data if t.get("showlegend")]
    assert len(shown) == len(set(shown))
    colours = {t["yaxis"]: t["marker"]["color"] for t in named(figure, "grass")}
    assert draw is report.groups or len(set(colours.values())) == 1


def test_runs_of_other_variables_do_not_disturb_each_other():
    runs = {"a": history(0.6), "b": history(0.5, names=("moo", "tail"), layers=("other",))}
    figure = report.contributions(runs)
    assert {t["name"] for t in figure.data} == {"digit", "grass", "moo", "tail", "unexplained"}
    assert [t["yaxis"] for t in named(figure, "tail")] == ["y2"]
    maps = report.heatmap(runs)
    assert [t["y"] for t in maps.data] == [["enc.0", "enc.1"], ["other"]]
    assert maps.layout["yaxis2"].get("showticklabels", True)  # other layers: their names are needed


# --- colours ----------------------------------------------------------------------------------------------------------


def test_confounders_are_warm_and_concepts_cool():
    figure = report.contributions(history(0.6))
    assert one(figure, "grass")["marker"]["color"] in WARM
    assert one(figure, "digit")["marker"]["color"] in COOL
    assert one(figure, "unexplained")["marker"]["pattern"]["shape"] == "/"


def test_every_variable_looks_different():
    names = [f"v{i}" for i in range(20)]
    for confounders in ((), names[:10]):
        look = styles(names, confounders)
        assert len({(s.colour, s.dash) for s in look.values()}) == 22


# --- plain specifications ---------------------------------------------------------------------------------------------


def test_plotly_knows_every_key():
    plotly = pytest.importorskip("plotly.graph_objects")
    for source in (history(0.6, None), {"a": history(0.6), "b": history(0.1, 0.2)}):
        for figure in every(source):
            for theme in ("light", "dark"):
                plotly.Figure(figure.to_dict(theme))  # raises where a property does not exist


def test_figures_are_json_and_take_the_theme():
    for figure in every(history(0.6, None)):
        plain = json.loads(json.dumps(figure.to_dict("dark"), allow_nan=False))
        assert plain["layout"]["template"]["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
        assert (
            plain["layout"]["template"]["layout"]["font"]["color"]
            != figure.spec["layout"]["template"]["layout"]["font"]["color"]
        )
        assert not {t["type"] for t in figure.data} & {"scattergl", "heatmapgl"}
    own = report.contributions(history(0.6)).to_dict({"ink": "#123456"})
    assert own["layout"]["template"]["layout"]["font"]["color"] == "#123456"
    with pytest.raises(InterpError, match=r"`theme='drak'` is none of .* Did you mean 'dark'"):
        report.contributions(history(0.6)).to_dict("drak")


def strings(plain):
    if isinstance(plain, dict):
        for value in plain.values():
            yield from strings(value)
    elif isinstance(plain, list):
        for value in plain:
            yield from strings(value)
    elif isinstance(plain, str):
        yield plain


@pytest.mark.parametrize("name", NAMES)
def test_names_are_text_to_plotly(name):
    source = {name: history(0.6, None, names=("digit", name))}
    scalars = {f"penalty/{name.replace('/', '')}": [(1, 1.0)]}
    figures = [
        report.equation(source),
        report.contributions(source),
        report.effects(source),
        report.groups(source),
        report.heatmap(source),
        report.heatmap(source, "entanglement"),
        report.penalties({name: scalars}, {1: [name]}),
        report.features({name: [discovered(layer=name, name=name)]}),
    ]
    for figure in figures:
        for text in strings(figure.to_dict()):
            assert not set(text.replace("<br>", "").replace("<b>", "").replace("</b>", "")) & {"<", ">"}
    assert named(figures[1], escape(name))
    assert figures[0].data[0]["y"] == ["digit"]
    assert figures[0].layout["yaxis"]["type"] == "category"  # else "2" is a number


@given(st.text())
def test_escaped_text_comes_back(text):
    assert html.unescape(escape(text)) == text
    assert not set(escape(text)) & set("<>")


@given(st.dictionaries(st.text(), st.lists(st.text() | st.floats(allow_nan=False, allow_infinity=False)), max_size=5))
def test_json_in_a_script_ends_no_script_and_comes_back(plain):
    text = script_json(plain)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == plain


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30, unique=True).map(sorted))
def test_bars_never_overlap(steps):
    width = widths(steps)
    for i in range(len(steps) - 1):
        assert steps[i] + width[i] / 2 <= steps[i + 1] - width[i + 1] / 2


# --- what is given ----------------------------------------------------------------------------------------------------


def test_events_and_records_draw_the_same():
    events = history(0.6, None)
    with_roles = report.Run(to_records(events), confounders=["grass"])
    assert report.effects(events).data == report.effects(with_roles).data


def test_what_is_given_and_missing_is_named():
    with pytest.raises(InterpError, match="expected Events or the records of `to_records`, got int"):
        report.effects([1])
    with pytest.raises(InterpError, match="no runs were given"):
        report.effects({})
    with pytest.raises(InterpError, match="there is no event yet"):
        report.effects([])
    with pytest.raises(InterpError, match=r"nothing of 'decodabilty' was measured.* Did you mean 'decodability'"):
        report.heatmap(history(0.6), "decodabilty")


def test_a_step_that_was_measured_twice_counts_once():
    def payload(step, share):
        return {
            "version": 1,
            "step": step,
            "epoch": 0,
            "records": event(step, share).records(),
            "equation": "",
            "confounders": ["grass"],
        }

    run = report.Run.from_payloads([payload(10, 0.6), payload(20, 0.5), payload(10, 0.3)])  # stopped, and resumed from step 0
    assert [r["value"] for r in run.line("contribution", "grass")] == [0.3, 0.5]


def test_confounders_are_known_from_their_penalties_too():
    assert report.Run.from_payloads([], scalars={"mine/penalty/grass/HSIC": []}).confounders == ["grass"]


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "level", "text"),
    [
        (0.6, "bad", "Leans on grass: 60.0 % of the output's variance."),
        (0.2, "some", "Uses grass in part: 20.0 % of the output's variance."),
        (0.02, "good", "Hardly uses grass: 2.0 % of the output's variance."),
        (None, "unknown", "Of what is named, uses digit most: 10.0 % of the output's variance."),
    ],
)
def test_the_verdict_names_the_biggest_confounder(share, level, text):
    run = report.Run.of(history(share))
    found = report.verdict(run, [] if share is None else run.confounders)
    assert (found["level"], found["text"]) == (level, text)
    assert found["worst"] == "Worst group: 51.0 % right (grass=1)."
    assert found["parts"][-1]["name"] == "unexplained"


def test_the_verdict_names_a_feature_that_nobody_has_named():
    features = [
        {**discovered(), "features": [{**f, "contribution": 0.4 * f["contribution"] / 0.1} for f in discovered()["features"]]}
    ]
    run = report.Run(to_records(history(0.01)), confounders=["grass"], features=features)
    found = report.verdict(run, run.confounders)
    assert found["text"] == "Uses feature 10, which nobody has named: 40.0 % of the output's variance."
    assert found["level"] == "some"
    leaning = report.Run(to_records(history(0.6)), confounders=["grass"], features=features)
    assert report.verdict(leaning, ["grass"])["level"] == "bad"
    named = [{**features[0], "features": [{**f, "promoted": "grass"} for f in features[0]["features"]]}]
    assert report.verdict(report.Run(run.records, features=named), ["grass"])["level"] == "good"


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_a_figure_shows_itself_in_a_notebook():
    figure = report.contributions(history(0.6, names=("digit", EVIL)))
    bundle = figure._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"] == figure.to_dict()
    table = bundle["text/html"]
    assert "<script" not in table
    assert html.escape(EVIL, quote=False) in table
    assert "60.0 %" in table
    assert len(table) < 5000


def test_without_plotly_a_figure_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lightning_interp.report.figure.find_spec", lambda name: None)
    figure = report.contributions(history(0.6))
    for show in (figure._repr_mimebundle_, figure.to_html):
        with pytest.raises(InterpError, match=r'pip install "lightning-interp\[report\]"'):
            show()
    assert figure.to_dict()["data"]  # the specification needs no plotly
