"""Names, labels, notes, alarms and samples are text wherever they are shown: no element, script or address is theirs."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from board import RunWriter
from report import histories
from tensorboard import plugin_util

from lightning_interp import Event, write_report
from lightning_interp import report as figures
from lightning_interp.report.figure import plotly_javascript, script_json
from lightning_interp.report.log_directory import read_log_directory
from lightning_interp.report.page import page
from lightning_interp.report.samples import samples_table
from lightning_interp.results import Groups
from lightning_interp.summaries.features import write_features
from lightning_interp.summaries.heatmap import Heatmap
from lightning_interp.summaries.text import equation_text

EVIL = [
    "</script><script>evil()</script>", "<img src=x onerror=evil()>", "\"'><svg onload=evil()>", "' onmouseover='evil()' x='",
    "[x](javascript:evil())", "![x](http://evil.example/x.png)", "<a href='http://evil.example'>x</a>", "a|b|c", "a\\|b",
    "one\n\n<img src=http://evil.example>\n\n![x](http://evil.example)", "<!--", "]]>", "\u2028evil()\u2029", "`x` *y* __z__",
    "&lt;script&gt;", "<http://evil.example>", "<style>*{display:none}</style>", "%{x}<extra></extra>", "http://evil.example",
]  # fmt: skip
DRAWN_BY_US = {"b", "br", "i", "span", "sub", "sup"}  # what Plotly reads in a text, and our figures write


class Elements(HTMLParser):
    """Elements and their attributes, texts, and what stands in scripts."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self._in = [], [], [], None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        (self.scripts if self._in in ("script", "style") else self.texts).append(data)

    def check(self, scripts=0):
        tags = [tag for tag, _ in self.elements]
        assert tags.count("script") == scripts
        assert not {"svg", "iframe", "object", "embed", "form", "link", "base", "a", "input"} & set(tags)
        for tag, attributes in self.elements:
            assert not [a for a in attributes if a.startswith("on") or a in ("srcset", "formaction", "xlink:href")]
            for address in ("src", "href", "action", "data"):
                assert attributes.get(address, "data:").startswith("data:image/png;base64,") or attributes.get(address) is None
            assert tag != "img" or set(attributes) <= {"src", "alt"}


@pytest.mark.parametrize("evil", EVIL)
def test_a_notebook_shows_names_as_text(evil):
    found = Elements(histories.event(10, names=(evil, f"{evil}2"), layers=(evil,))._repr_html_())
    found.check()
    assert evil in found.texts  # whole, and by itself
    withheld = Elements(histories.event(10, names=(evil, f"{evil}2"), withheld=True)._repr_html_())
    withheld.check()


def test_a_count_of_a_checkpoint_that_is_none_is_text():
    plain = histories.event(10).to_dict()
    plain["groups"] = {**plain["groups"], "count": dict.fromkeys(plain["groups"]["count"], EVIL[1])}
    Elements(Event.from_dict(plain)._repr_html_()).check()
    assert isinstance(Event.from_dict(plain).groups, Groups)


def texts_of(plain):
    """Every text within plain values, keys too."""
    if isinstance(plain, str):
        return [plain]
    if isinstance(plain, dict):
        return [t for pair in plain.items() for one in pair for t in texts_of(one)]
    return [t for one in plain for t in texts_of(one)] if isinstance(plain, (list, tuple)) else []


@pytest.mark.parametrize("evil", EVIL)
def test_figures_give_plotly_names_escaped(evil):
    pytest.importorskip("plotly")
    events = {evil: [histories.event(s, names=(evil, f"{evil}2"), layers=(evil,), withheld=s == 20) for s in (10, 20)]}
    features = {evil: [{**histories.discovered(layer=evil, name=evil), "features": features_named(evil)}]}
    drawn = [figures.contributions(events), figures.effects(events), figures.groups(events), figures.equation(events)]
    drawn += [figures.heatmap(events, "decodability"), figures.features(features)]
    for figure in drawn:
        for text in texts_of(figure.to_dict()):
            assert set(re.findall(r"<\s*/?\s*([a-zA-Z!]\w*)", text)) <= DRAWN_BY_US, text
            assert "href" not in text or "&lt;a href" in text
        for shown in (figure._repr_html_(), figure._repr_mimebundle_()["text/html"]):
            Elements(shown).check()


def features_named(evil):
    found = histories.discovered(name=evil)["features"]
    return [{**f, "promoted": evil, "groups": {evil: 0.5}, "strongest": s, "weakest": s} for f, s in zip(found, samples(evil))]


def samples(evil):
    return [
        {"kind": "image", "png": histories.PNG, "count": evil}, {"kind": "text", "texts": [evil, evil]},
        {"kind": "rows", "columns": [evil, "b"], "rows": [[1.5, -2.0]]},
    ]  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
def test_samples_are_text_and_pictures_are_pictures(evil):
    found = Elements(samples_table(features_named(evil)))
    found.check()
    assert [tag for tag, _ in found.elements].count("img") == 2  # the strongest and weakest that are pictures
    assert evil in found.texts
    other = {**features_named("x")[0], "strongest": {"kind": "image", "png": f'{histories.PNG}"><script>', "count": 1}}
    Elements(samples_table([other])).check()


@pytest.mark.parametrize("evil", EVIL)
def test_a_report_of_a_log_that_somebody_else_wrote_holds_no_element_of_theirs(tmp_path, evil):
    pytest.importorskip("plotly")
    with RunWriter(tmp_path / "run") as run:
        run.event(histories.event(10, names=(evil, f"{evil}2"), layers=(evil,)), alarms=[evil])
        run.features({**histories.discovered(), "layer": "enc.0", "features": features_named(evil)})
        run.scalar(f"penalty/{evil}", 1.0, 3)
    text = page(read_log_directory(tmp_path), title=evil).replace(plotly_javascript(), "")
    found = Elements(text)
    found.check(scripts=3)
    assert len([t for t, _ in found.elements if t == "style"]) == 1
    data = json.loads(found.scripts[1])
    assert set(data) == {"figures", "templates"}  # the JSON ends where we end it
    assert any(evil in t for t in found.texts)


@pytest.mark.parametrize("evil", EVIL)
def test_json_within_a_script_cannot_end_it(evil):
    text = script_json({"name": evil, evil: [evil]})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"name": evil, evil: [evil]}


def test_the_titles_of_a_report_are_text(tmp_path):
    pytest.importorskip("plotly")
    path = write_report(histories.history(0.5), tmp_path / "report.html", title=EVIL[0])
    Elements(path.read_text(encoding="utf-8").replace(plotly_javascript(), "")).check(scripts=3)


# --- Markdown, as TensorBoard renders it ------------------------------------------------------------------------------


class Texts:
    """As much of a `SummaryWriter` as samples need."""

    def __init__(self):
        self.texts, self.images = [], []

    def add_text(self, tag, text, step):
        self.texts.append(text)

    def add_image(self, tag, image, step, dataformats):
        self.images.append(image)

    def add_summary(self, summary, step):
        """JSON, which the tab reads."""

    @property
    def file_writer(self):
        return self


def rendered(text):
    found = Elements(plugin_util.markdown_to_safe_html(text))
    found.check()
    assert not [tag for tag, _ in found.elements if tag == "img"]
    return found


def spaced(text):
    return " ".join(text.split())


@pytest.mark.parametrize("evil", EVIL)
def test_tensorboard_shows_names_as_text_and_loads_nothing(evil):
    found = rendered(equation_text(histories.event(10, names=(evil, f"{evil}2"), layers=(evil,))))
    cells = [spaced(t) for t in found.texts]
    assert spaced(evil) in cells
    assert len([tag for tag, _ in found.elements if tag == "tr"]) == 4  # a head, two variables, unexplained
    assert len([tag for tag, _ in found.elements if tag == "td"]) == 3 * 6


@pytest.mark.parametrize("evil", EVIL)
def test_tensorboard_shows_samples_as_text_and_loads_nothing(evil):
    writer = Texts()
    content = {**histories.discovered(), "features": [{**f, "name": "f"} for f in features_named(evil)]}
    write_features(writer, content, 10)
    assert len(writer.images) == 2
    assert len(writer.texts) == 4
    for text in writer.texts:
        rendered(text)
    assert "evil" not in "".join(t for t, _ in Elements(plugin_util.markdown_to_safe_html(writer.texts[0])).elements)


@pytest.mark.parametrize("name", ["$\\include{x}$", "$x$ and $y$", "$\\frac{1}{2}$", "a$b", "^{x}_{y}"])
def test_dollars_in_a_name_are_no_formula(name, monkeypatch):
    def parsed(*_, **__):
        raise AssertionError("read as a formula")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", parsed)
    assert Heatmap([name], [name]).draw(np.full((1, 1), 0.5)).dtype == np.uint8


def test_the_picture_in_the_tests_is_one():
    from PIL import Image

    assert Image.open(io.BytesIO(base64.b64decode(histories.PNG))).size == (1, 1)
