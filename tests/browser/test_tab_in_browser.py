"""The tab as a reader sees it: a real TensorBoard on real runs of the demo, in Chromium, compared with the events themselves.

Screenshots are kept in `screenshots/` beside this file.
"""

import json
import re
from pathlib import Path

import pytest
from board import HOSTILE, RunWriter, event, tensorboard

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"there is no {CHROMIUM} to look with", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
pytest.importorskip("plotly", reason="plotly draws the figures")

from callbacks.boring import HOST_WARNINGS  # noqa: E402

from lightning_interp.summaries.event_log import event_content  # noqa: E402

pytestmark = HOST_WARNINGS
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]  # fmt: skip
SHOTS = Path(__file__).parent / "screenshots"
EPOCHS = 4
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
ODD_RUN = HOSTILE.replace("/", "-")


def train(log_dir, name, *more):
    """A short real run of the demo; its events."""
    import lightning as L
    from lightning.pytorch.loggers import TensorBoardLogger

    import lightning_interp as interp
    from lightning_interp.demo import GrassyDigitsData, GrassyDigitsModel

    L.seed_everything(0, verbose=False)
    variables = [interp.Concept("digit", label="digit"), interp.Confounder("grass", label="grass")]
    measures = ["contribution", "decodability", "groups", "sensitivity"]
    places = {"output": "head", "target": "label", "inputs": "image", "cluster": "source"}
    monitor = interp.ConceptMonitor(variables, layers=["encoder.conv*"], measures=measures, **places)
    trainer = L.Trainer(
        max_epochs=EPOCHS, callbacks=[monitor, *more], logger=TensorBoardLogger(log_dir, name="", version=name),
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        accelerator="cpu", num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(GrassyDigitsModel(width=8), datamodule=GrassyDigitsData(seed=0, crops=2))
    return monitor.history


def discovered(step):
    """Eight features, with every kind of samples."""
    samples = [
        {"kind": "image", "png": PNG, "count": 1}, {"kind": "text", "texts": [HOSTILE, "moo"]},
        {"kind": "rows", "columns": [HOSTILE, "b"], "rows": [[1.5, None], [-2.0, 0.0]]},
    ]  # fmt: skip
    found = [
        {"name": f"feature {i}", "contribution": 0.3 / (i + 1), "causal": 0.01 * step, "stability": 0.9,
         "suspicion": 0.5 / (i + 1), "flip": None, "early": 0.2, "target": -0.4, "groups": {f"{HOSTILE}=0": 0.25},
         "promoted": HOSTILE if i == 1 else None,
         "strongest": samples[i % 3], "weakest": None}
        for i in range(8)
    ]  # fmt: skip
    return {"version": 1, "step": step, "epoch": 0, "layer": "conv1", "unexplained": 0.4, "unnamed": 0.1, "features": found}


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def histories(log_dir):
    """{run: its events}: two real runs, and two written ones with what is rare."""
    pytest.importorskip("skimage", reason="the demo's photographs")
    import lightning_interp as interp

    suppress = interp.SuppressConfounder("grass", given=["digit"], weight=3.0, start_epoch=1, ramp_epochs=0)
    with pytest.warns(interp.errors.InterpWarning, match="leans on it"):
        found = {"plain": train(log_dir, "plain"), "suppressed": train(log_dir, "suppressed", suppress)}
    with RunWriter(log_dir / ODD_RUN) as run:
        found["odd"] = [event(10, 0.5, name=HOSTILE), event(20, 0.6, name=HOSTILE)]
        for one in found["odd"]:
            run.event(one, alarms=[f"{HOSTILE} again"])
            run.features(discovered(one.step))
    with RunWriter(log_dir / "withheld") as run:
        found["withheld"] = [event(10, 0.3), event(20, 0.3, withheld=True), event(30, 0.3)]
        for one in found["withheld"]:
            run.event(one)
    return found


@pytest.fixture(scope="module")
def board(log_dir, histories, tmp_path_factory):
    with tensorboard(log_dir, tmp_path_factory.mktemp("metadata")) as found:
        last = 2 * [histories["plain"][-1].step]
        found.wait(
            lambda runs: len(runs) == 4 and [r["step"] + 1 for r in runs if r["label"] in ("plain", "suppressed")] == last
        )
        yield found


@pytest.fixture(scope="module")
def browser():
    SHOTS.mkdir(exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield chromium
        chromium.close()


class Tab:
    """The tab's page.

    Args:
        page: of the browser.
        address: TensorBoard's.
        inside: whether in TensorBoard's page, as readers see it; else alone, which opens sooner.
    """

    def __init__(self, page, address, inside):
        self.page = page
        self.errors = []
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda problem: self.errors.append(str(problem)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # which the browser asks of a page alone
        if inside:
            page.goto(f"{address}/#lightning_interp")
            self.frame = page.wait_for_selector("iframe").content_frame()
        else:
            page.goto(f"{address}/data/plugin_entry.html?name=lightning_interp")
            self.frame = page.main_frame

    def ready(self):
        self.frame.wait_for_selector(".card .verdict")
        return self

    def choose(self, *labels):
        for box in self.frame.locator(".runs label").all():
            box.locator("input").set_checked(box.inner_text().strip() in labels)
        self.settled()
        assert self.frame.locator("#now .card").count() == len(labels)

    def settled(self):
        """Wait until nothing is asked of TensorBoard."""
        self.frame.wait_for_selector("main[aria-busy=false]")

    def to(self, section):
        """Bring a section into view, and wait until its figures are drawn."""
        self.frame.evaluate("id => document.getElementById(id).scrollIntoView()", section)
        drawn = "id => [...document.querySelectorAll(`#${id} .figure`)].every(f => f.getAttribute('aria-busy') === 'false')"
        self.frame.wait_for_function(drawn, arg=section)

    def step(self, text):
        """Wait until everything shows a step."""
        self.frame.wait_for_function(
            "text => [...document.querySelectorAll('#now .card .when')].every(n => n.textContent === text)", arg=text
        )

    def drawn(self, section, index=0):
        """The traces that Plotly holds of a figure."""
        code = "([id, i]) => JSON.parse(JSON.stringify(document.querySelectorAll(`#${id} .js-plotly-plot`)[i].data))"
        return self.frame.evaluate(code, [section, index])

    def shot(self, name, section=None):
        if section:
            self.to(section)
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture(scope="module")
def usual(browser):
    """One context for most tests: it keeps Plotly's script."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def opened(browser, board, usual):
    """Opens the tab; at the end there was no error."""
    tabs, contexts = [], []

    def open_at(address=None, inside=False, **settings):
        context = usual
        if settings:
            contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
            context = contexts[-1]
        tabs.append(Tab(context.new_page(), address or board.address, inside))
        return tabs[-1]

    yield open_at
    for tab in tabs:
        tab.page.close()
    for context in contexts:
        context.close()
    assert [tab.errors for tab in tabs] == [[] for _ in tabs]


def shown(one):
    """What a card says of an event: {name: percentage}, the line with the coefficients, when."""
    shares = {name: f"{100 * s.value:.1f} %".replace("-", "−") for name, s in one.contribution.items()}
    (line,) = [text for text in str(one).splitlines() if text.endswith("+ unexplained")]
    return shares, line, f"step {one.step}, epoch {one.epoch}"


def card(tab, label):
    found = tab.frame.locator(".card").filter(has=tab.frame.locator("h3", has_text=re.compile(f"^{re.escape(label)}$")))
    shares = {key.get_attribute("data-name"): key.locator("b").inner_text() for key in found.locator(".keys li").all()}
    line = re.sub(r"\s+", " ", found.locator("p.equation").inner_text()).strip()
    return shares, line, found.locator(".when").inner_text()


def test_it_says_what_each_run_uses_and_how_that_came_about(opened, histories):
    tab = opened(inside=True).ready()
    tab.choose("plain", "suppressed")
    for name in ("plain", "suppressed"):
        assert card(tab, name) == shown(histories[name][-1])
    sentences = tab.frame.locator(".verdict").all_inner_texts()
    grass = [100 * histories[name][-1].contribution["grass"].value for name in ("plain", "suppressed")]
    assert sentences[0] == f"▲Leans on grass: {grass[0]:.1f} % of the output's variance."
    assert f"{grass[1]:.1f} % of the output's variance" in sentences[1]
    tab.shot("1280")
    tab.to("history")
    bars = [t for t in tab.drawn("history") if t["name"] == "grass"]
    assert [t["y"] for t in bars] == [[e.contribution["grass"].value for e in histories[n]] for n in ("plain", "suppressed")]
    assert bars[0]["x"] == [e.step for e in histories["plain"]]
    tab.shot("history", "history")


def test_the_arrow_keys_move_every_view_to_another_event(opened, histories):
    tab = opened(inside=True).ready()
    tab.choose("plain", "suppressed")
    tab.frame.locator("#step").focus()
    for _ in range(2):
        tab.page.keyboard.press("ArrowLeft")
    at = histories["plain"][-3]
    tab.step(shown(at)[2])
    assert tab.frame.locator("output").inner_text() == shown(at)[2]
    for name in ("plain", "suppressed"):
        assert card(tab, name) == shown(histories[name][-3])
    tab.to("where")
    first, second = tab.drawn("where")
    for trace, name in ((first, "plain"), (second, "suppressed")):
        one = histories[name][-3]
        assert trace["y"] == list(one.decodability)
        assert trace["z"] == [[s.value for s in scores.values()] for scores in one.decodability.values()]
    latest = tab.frame.locator("button", has_text="Latest")
    assert latest.get_attribute("aria-pressed") == "false"
    tab.frame.locator("#step").focus()
    tab.page.keyboard.press("End")
    tab.step(shown(histories["plain"][-1])[2])
    assert latest.get_attribute("aria-pressed") == "true"


def test_a_run_is_put_aside_by_the_keyboard(opened, histories):
    tab = opened().ready()
    tab.choose("plain", "suppressed")
    tab.frame.locator(".runs label", has_text="suppressed").locator("input").focus()
    tab.page.keyboard.press("Space")
    tab.frame.wait_for_function("document.querySelectorAll('#now .card').length === 1")
    assert card(tab, "plain") == shown(histories["plain"][-1])
    tab.to("penalties")
    assert "none was logged" in tab.frame.locator("#penalties .reason").inner_text()
    tab.choose()
    assert tab.frame.locator("#now .cards").inner_text() == "Choose a run above."


def test_the_heat_map_shows_the_measure_that_is_chosen(opened, histories):
    tab = opened().ready()
    tab.choose("plain")
    tab.to("where")
    tab.frame.locator("#measure").select_option("sensitivity")
    one = histories["plain"][-1]
    true = [
        [found["1"].value if "1" in found else next(iter(found.values())).value for found in v.values()]
        for v in one.sensitivity.values()
    ]
    tab.frame.wait_for_function(
        "z => JSON.stringify(document.querySelector('#where .js-plotly-plot').data[0].z) === z",
        arg=json.dumps(true, separators=(",", ":")),
    )
    tab.shot("where", "where")


def test_groups_penalties_and_alarms_stand_on_the_steps(opened, histories):
    tab = opened().ready()
    tab.choose("plain", "suppressed")
    tab.to("groups")
    worst = [t for t in tab.drawn("groups") if t["name"] == "worst group"]
    assert [t["y"] for t in worst] == [[e.groups.worst_accuracy for e in histories[n]] for n in ("plain", "suppressed")]
    tab.shot("groups", "groups")
    tab.to("penalties")
    weight = [t for t in tab.drawn("penalties") if "weight" in t.get("hovertext", [""])[0]]
    assert set(weight[0]["y"]) == {3.0}
    assert tab.frame.locator(".alarms li").first.inner_text().startswith("plain, event at step ")
    tab.shot("penalties", "penalties")


def test_a_click_in_a_figure_goes_to_its_step(opened, histories):
    tab = opened().ready()
    tab.choose("plain")
    tab.to("effects")
    first = histories["plain"][0]
    tab.frame.evaluate(
        "x => document.querySelectorAll('#effects .js-plotly-plot')[1].emit('plotly_click', {points: [{x}]})", first.step
    )
    tab.step(shown(first)[2])


def test_the_table_has_every_record_sorts_and_is_copied(opened, histories):
    tab = opened().ready()
    tab.choose("plain")
    true = histories["plain"][-1].records()
    rows = tab.frame.locator("#records tbody tr")
    tab.frame.wait_for_function("n => document.querySelectorAll('#records tbody tr').length === n", arg=len(true))
    assert [rows.nth(i).locator("td").first.inner_text() for i in range(len(true))] == [r["measure"] for r in true]
    head = tab.frame.locator("#records th", has_text="value")
    for order, sign in (("ascending", 1), ("descending", -1)):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == order
        shown_values = [float(v) for v in tab.frame.evaluate(
            "[...document.querySelectorAll('#records tbody tr')].map(r => r.children[4].title).filter(t => t)"
        )]  # fmt: skip
        assert shown_values == sorted((r["value"] for r in true if r["value"] is not None), key=lambda v: sign * v)
    tab.frame.locator("#records button", has_text="Copy").click()
    tab.frame.wait_for_function("document.querySelector('.said').textContent === 'Copied.'")
    header, *lines = tab.frame.evaluate("navigator.clipboard.readText()").split("\n")
    assert header.split("\t") == ["step", "epoch", "measure", "layer", "variable", "by", "value", "low", "high", "note"]
    copied = [dict(zip(header.split("\t"), line.split("\t"))) for line in lines]
    assert len(copied) == len(true)
    key = ("measure", "layer", "variable", "by")
    by_name = {tuple(r[k] for k in key): r["value"] for r in copied}
    for r in true:
        text = by_name[tuple(r[k] or "" for k in key)]
        assert (float(text) if text else None) == r["value"]
    tab.shot("records", "records")


def test_names_are_text_whatever_they_hold(opened):
    tab = opened().ready()
    tab.choose(ODD_RUN)
    assert tab.frame.locator(".card h3").inner_text() == ODD_RUN
    assert HOSTILE in tab.frame.locator(".verdict").inner_text()
    for section in ("history", "effects", "where", "groups", "records"):
        tab.to(section)
    assert [t for t in tab.frame.locator("#history .legendtext").all_text_contents() if t == HOSTILE]
    assert tab.frame.evaluate("[...document.scripts].filter(s => s.textContent.includes('alert')).length") == 0
    assert HOSTILE in tab.frame.locator("#records td").all_inner_texts()
    assert HOSTILE in tab.frame.locator(".alarms li").first.inner_text()
    tab.shot("names")


def test_features_stand_with_their_samples_the_most_suspicious_first(opened):
    tab = opened().ready()
    tab.choose("plain")
    assert tab.frame.locator("#features").is_hidden()
    tab.choose(ODD_RUN)
    tab.to("features")
    (bars,) = tab.drawn("features")
    assert bars["x"] == [f["contribution"] for f in discovered(20)["features"]]
    cards = tab.frame.locator("#features .card")
    assert cards.locator("h4").all_inner_texts() == [
        "feature 0",
        f"feature 1: {HOSTILE}",
        *(f"feature {i}" for i in range(2, 6)),
    ]
    facts = dict(zip(cards.first.locator("dt").all_inner_texts(), cards.first.locator("dd").all_inner_texts()))
    assert facts == {
        "share of the output's variance": "0.3000", "suspicion": "0.5000", "causal": "0.2000", "stability": "0.9000",
        "early": "0.2000", "correlation with the label": "−0.4000",
    }  # fmt: skip
    assert cards.nth(0).locator("img").evaluate("image => image.naturalWidth") == 1
    assert cards.nth(1).locator("details[open] li").all_inner_texts() == [HOSTILE, "moo"]
    assert cards.nth(2).locator("th").first.inner_text() == HOSTILE
    assert cards.nth(2).locator("td").all_inner_texts() == ["1.5000", "–", "−2.0000", "0.0000"]
    tab.frame.locator("#features summary", has_text="2 more").click()
    tab.frame.wait_for_function("document.querySelectorAll('#features .card').length === 8")
    tab.frame.locator("#step").focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.step("step 10, epoch 1")
    tab.settled()
    assert cards.first.locator("dd").nth(2).inner_text() == "0.1000"
    tab.shot("features", "features")


def test_what_is_withheld_is_a_gap_with_its_reason(opened):
    tab = opened().ready()
    tab.choose("withheld")
    tab.frame.locator("#step").focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.step("step 20, epoch 2")
    assert "+ ?·grass" in tab.frame.locator("p.equation").inner_text()
    tab.frame.wait_for_selector("#records td.withheld")
    assert tab.frame.locator("#records td.withheld").first.inner_text() == "withheld: too few rows"
    tab.to("effects")
    (line,) = [t for t in tab.drawn("effects", 1) if t.get("name") == "grass" and "markers" in t["mode"]]
    assert line["y"] == [3.0, None, 3.0]
    (cross,) = [t for t in tab.drawn("effects", 1) if t.get("name") == "withheld"]
    assert "too few rows" in cross["hovertext"][0]


@pytest.mark.parametrize("width", [1280, 800])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_in_either_theme_and_width(opened, theme, width):
    tab = opened(inside=True, color_scheme=theme, viewport={"width": width, "height": 900}).ready()
    tab.choose("plain", "suppressed")
    tab.to("history")
    ink, paper = tab.frame.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    texts = [
        ink,
        *tab.frame.evaluate(
            "['.verdict', '.when', '.caveat', '.keys'].map(s => getComputedStyle(document.querySelector(s)).color)"
        ),
    ]
    texts.append(tab.frame.evaluate("getComputedStyle(document.querySelector('#history .xtick text')).fill"))
    assert all(contrast(text, paper) >= 4.5 for text in texts), texts
    assert (luminance(paper) < 0.2) == (theme == "dark")
    assert tab.frame.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    tab.frame.evaluate("scrollTo(0, 0)")
    tab.shot(f"{theme}-{width}")


def test_the_theme_follows_tensorboards_switch_until_the_reader_says(opened):
    tab = opened(inside=True, color_scheme="light").ready()
    theme = "document.documentElement.dataset.theme"
    assert tab.frame.evaluate(theme) == "light"
    tab.page.evaluate("document.body.classList.add('dark-mode')")
    tab.frame.wait_for_function(f"{theme} === 'dark'")
    tab.frame.locator("label", has_text="Theme").locator("select").select_option("light")
    assert tab.frame.evaluate(theme) == "light"


def test_every_control_is_reached_by_the_keyboard_and_has_a_name(opened):
    tab = opened().ready()
    tab.settled()
    unnamed = tab.frame.evaluate("""
        [...document.querySelectorAll('button, select, input, [tabindex]')].filter(one =>
            !(one.labels?.length || one.textContent.trim() || one.getAttribute('aria-label') || one.closest('.js-plotly-plot'))
        ).map(one => one.outerHTML)
    """)
    assert unnamed == []
    assert (
        tab.frame.evaluate("[...document.querySelectorAll('button, select, input')].filter(one => one.tabIndex < 0).length")
        == 0
    )
    assert tab.frame.locator("#step").get_attribute("aria-valuetext") == tab.frame.locator("output").inner_text()


def test_without_plotly_the_words_stay(opened, histories):
    tab = opened()
    tab.page.route("**/plotly.min.js", lambda route: route.fulfill(status=404, body="{}"))
    tab.page.reload()
    tab.ready()
    tab.choose("plain", "suppressed")
    tab.to("history")
    assert 'pip install "lightning-interp[report]"' in tab.frame.locator("#history .reason").inner_text()
    assert card(tab, "plain") == shown(histories["plain"][-1])
    tab.errors[:] = [e for e in tab.errors if "404" not in e]


def test_a_silent_tensorboard_is_said_and_heard_again(opened):
    tab = opened().ready()
    tab.page.route("**/lightning_interp/runs*", lambda route: route.abort())
    tab.frame.wait_for_selector(".banner:not([hidden])")
    assert "does not answer" in tab.frame.locator(".banner").inner_text()
    tab.page.unroute("**/lightning_interp/runs*")
    tab.frame.wait_for_selector(".banner", state="hidden")
    tab.errors[:] = [e for e in tab.errors if "ERR_FAILED" not in e]


def test_what_is_not_shown_is_said(opened, tmp_path):
    runs = tmp_path / "runs"
    for name in ("one", "two"):
        with RunWriter(runs / name) as run:
            for i in range(1, 13):
                run.event(event(10 * i))
    with RunWriter(runs / "newer") as run:
        run.event(event(10))
        run.raw(json.dumps({**event_content(event(20)), "version": 2}).encode(), step=20)
    with tensorboard(runs, tmp_path, "--samples_per_plugin", "lightning_interp=5") as own:
        own.wait(lambda found: [(one["label"], one["step"]) for one in found] == [("newer", 20), ("one", 119), ("two", 119)])
        tab = opened(own.address).ready()
        tab.settled()
        assert tab.frame.locator(".remarks li").all_inner_texts() == [
            "newer: an event could not be read: step 20: written in version 2 of the event log; this lightning_interp reads "
            "version 1.",
            "one, two: TensorBoard holds a sample of 5 of 12 events. For all, start it with --samples_per_plugin "
            "lightning_interp=12.",
        ]
        tab.page.close()


def test_an_empty_page_says_what_to_add_and_fills_itself_while_a_run_is_written(opened, tmp_path):
    runs = tmp_path / "runs"
    with RunWriter(runs / "loss") as run:
        run.scalar("train_loss", 1.0, 0)
    with tensorboard(runs, tmp_path) as own, RunWriter(runs / "live") as run:
        tab = opened(own.address)
        tab.frame.wait_for_selector(".empty h2")
        text = tab.frame.locator(".empty").inner_text()
        assert "interp.ConceptMonitor(" in text
        assert "L.Trainer(callbacks=[monitor], logger=TensorBoardLogger(" in text
        tab.shot("empty")
        run.event(event(10, 0.5))
        run.event(event(20, 0.4))
        run.events.flush()
        tab.ready().step("step 20, epoch 2")
        tab.settled()
        assert tab.frame.locator("output").inner_text() == "step 20, epoch 2"
        # it follows the newest event
        run.event(event(30, 0.3))
        run.events.flush()
        tab.step("step 30, epoch 3")
        # until the reader moves
        tab.frame.locator("#step").focus()
        tab.page.keyboard.press("Home")
        tab.step("step 10, epoch 1")
        run.event(event(40, 0.2))
        run.events.flush()
        tab.frame.wait_for_function("document.getElementById('step').max === '3'")
        tab.settled()
        assert tab.frame.locator("output").inner_text() == "step 10, epoch 1"
        tab.step("step 10, epoch 1")
        tab.page.close()


def luminance(colour):
    parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    """WCAG's contrast ratio of two colours, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
