"""The report as a file: what is in it, and what a browser without a network makes of it."""

import os
import stat

import pytest
from histories import EVIL, discovered, history

import lightning_interp as interp
from lightning_interp import report, to_records
from lightning_interp.errors import InterpError
from lightning_interp.report.figure import plotly_javascript
from lightning_interp.report.page import COLUMNS, page

SCALARS = {"penalty/grass": [(1, 1.0), (2, 0.5)], "penalty_weight/grass": [(1, 1.0), (2, 2.0)]}


def run(*shares, names=("digit", "grass"), **more):
    events = history(*shares, names=names)
    return report.Run(
        to_records(events),
        equations={e.step: str(e) for e in events},
        notes={e.step: e.notes for e in events},
        confounders=[names[1]],
        **more,
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A report of two runs, in which everything that has a name is HTML."""
    names = ("digit", EVIL)
    runs = {
        "plain": run(0.6, 0.7, names=names, alarms={10: [f"step 10: {EVIL}"]}),
        EVIL: run(0.3, None, 0.01, names=names, scalars=SCALARS, features=[discovered(layer=EVIL, name=EVIL)]),
    }
    return interp.write_report(runs, tmp_path_factory.mktemp("report") / "report.html", title=EVIL)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_the_javascript_and_little_more(two):
    size = len(two.read_text(encoding="utf-8"))
    assert 0 < size - len(plotly_javascript()) < 200_000


def test_nothing_that_is_named_becomes_markup(two):
    text = two.read_text(encoding="utf-8").replace(plotly_javascript(), "")
    assert "<script>window" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == 3
    assert "&lt;script&gt;window.evil" in text
    assert "\\u0026lt;/script" in text  # in the figures: escaped for Plotly, and again for the script element


def test_the_verdict_comes_first():
    text = page({"plain": run(0.6), "cut": run(0.01)})
    parts = (
        "Leans on grass: 60.0 % of the output&#x27;s variance.",
        "6.00·grass [5.00, 8.00]",
        "Worst group: 51.0 % right",
        "By intervention, do(grass) = 6.50",
        "n = 120, validation, balanced weights",
        "Hardly uses grass: 1.0 %",
        "only an intervention",
    )
    first = [text.index(part) for part in parts]
    assert first == sorted(first)
    assert first[-1] < text.index("<h2>")


def test_notes_alarms_and_what_was_measured_are_in_it():
    text = page(run(0.6, None, alarms={10: ["step 10: it leans"], 20: ["held"]}))
    assert "<li>step 10: it leans</li><li>step 20: held</li>" in text
    assert "<li>step 10: a note on grass</li>" in text  # of both events: once, with its first step
    assert "2 events, steps 10 to 20" in text
    assert "Declared as confounders: grass." in text


def test_events_records_and_runs_are_taken_alike(tmp_path):
    events = history(0.6)
    for source in (events, tuple(events), {"a": events}, to_records(events), run(0.6)):
        assert interp.write_report(source, tmp_path / "r.html") == tmp_path / "r.html"
    assert os.listdir(tmp_path) == ["r.html"]


def test_an_event_of_layers_only_is_reported():
    from lightning_interp.events import Event, Score

    text = page([Event(1, 0, 60, "balanced", "val", "binary", decodability={"enc": {"moo": Score(0.5)}})])
    assert "What the output is made of was not measured." in text
    assert text.count('class="figure"') == 1


def test_a_run_with_nothing_but_features_is_reported():
    text = page(report.Run([], features=[discovered(), {**discovered(layer="b"), "features": []}]))
    assert "Features without a name" in text
    assert "<p>grass=1: 1.00</p>" in text
    assert 'id="records"' not in text


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_report_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    path = interp.write_report(history(0.6), tmp_path / "r.html")
    before = path.read_bytes()
    with pytest.raises(InterpError, match="there is no event yet"):
        interp.write_report([], path)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        interp.write_report(history(0.5), path)
    assert os.listdir(tmp_path) == ["r.html"]
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_others_may_read_it_as_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        path = interp.write_report(history(0.6), tmp_path / "r.html")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_where_it_cannot_be_written_is_said(tmp_path):
    with pytest.raises(InterpError, match=r"there is no directory '.*missing'"):
        interp.write_report(history(0.6), tmp_path / "missing" / "r.html")


# --- in a browser without a network -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(two, tab):
    """The report, opened once: that takes seconds."""
    return tab(permissions=["clipboard-read", "clipboard-write"]).open(two)


def test_it_draws_offline_without_a_word(here):
    shown = here.page
    assert here.problems == []
    assert shown.evaluate("window.evil") is None
    assert shown.title() == EVIL
    figures = shown.locator(".figure").count()
    assert figures == shown.locator(".figure .main-svg:first-child").count() == 10
    assert shown.locator("h1").inner_text() == EVIL
    assert shown.locator(".card").nth(0).locator(".verdict").inner_text().startswith(f"Leans on {EVIL}: 70.0 %")
    legend = shown.locator(".figure").nth(1).locator(".legendtext").all_text_contents()
    assert EVIL in legend  # as text, not as what it would be in HTML
    bars = shown.locator(".card").nth(0).locator(".bar span").evaluate_all("a => a.map(x => x.getBoundingClientRect().width)")
    assert bars[0] / sum(bars) == pytest.approx(0.7, abs=0.01)


def test_the_records_are_copied_as_a_table(here):
    here.page.locator("#copy").click()
    assert here.page.locator("#copy").inner_text() == "Copied"
    lines = here.page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].split("\t") == ["run", "step", *COLUMNS]
    assert "plain\t20\tcontribution\t\tdigit\t\t0.1\t0.05\t0.2\t" in lines


def test_a_click_sorts_the_records(here):
    head = here.page.locator("#records th", has_text="value")
    column = "rows => rows.map(r => r.cells[6].dataset.value ?? null)"
    for direction in ("ascending", "descending"):
        head.click()
        assert head.get_attribute("aria-sort") == direction
        values = here.page.locator("#records tbody tr").evaluate_all(column)
        numbers = [float(v) for v in values if v is not None]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert len(numbers) > 20
        assert None not in values[: len(numbers)]  # what is withheld comes last


def test_it_follows_the_readers_theme(here):
    text = here.page.locator(".figure").first.locator(".gtitle")
    for scheme, ink in (("light", "rgb(31, 35, 40)"), ("dark", "rgb(230, 234, 239)"), ("light", "rgb(31, 35, 40)")):
        here.page.emulate_media(color_scheme=scheme)
        here.page.wait_for_function("ink => getComputedStyle(document.querySelector('.gtitle')).fill === ink", arg=ink)
        assert text.evaluate("x => getComputedStyle(x).fill") == ink
        assert here.page.locator("h1").evaluate("x => getComputedStyle(x).color") == ink


def test_on_paper_every_figure_fits_a4(here):
    shown = here.page
    shown.set_viewport_size({"width": 703, "height": 1000})  # 210 mm less the margins
    shown.emulate_media(media="print")
    right = shown.locator(".figure").evaluate_all("a => Math.max(...a.map(x => x.getBoundingClientRect().right))")
    assert right <= 703
    assert shown.locator(".modebar").first.is_hidden()
    assert shown.locator("#copy").is_hidden()
    assert shown.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    assert here.problems == []


def test_a_single_figure_opens_offline_too(tab, tmp_path):
    path = tmp_path / "figure.html"
    path.write_text(report.contributions(history(0.6, names=("digit", EVIL))).to_html(), encoding="utf-8")
    alone = tab()
    alone.page.goto(path.as_uri())
    alone.page.wait_for_selector(".legendtext")
    assert alone.page.locator(".legendtext").all_text_contents() == [EVIL, "digit", "unexplained"]
    assert alone.page.evaluate("window.evil") is None
    assert alone.problems == []
