"""The system's Chromium, driven by playwright; tests that look at pages are skipped without."""

import shutil

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A page with no network, and what went wrong in it."""

    def __init__(self, browser, **settings):
        self.context = browser.new_context(offline=True, **settings)
        self.context.set_default_timeout(120_000)  # a busy machine takes its time
        self.page = self.context.new_page()
        self.problems = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else self.problems.append(r.url)
        )

    def open(self, path):
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")
        return self


@pytest.fixture(scope="module")
def tab(chromium):
    found = []

    def new(**settings):
        found.append(Tab(chromium, **settings))
        return found[-1]

    yield new
    for one in found:
        one.context.close()
