"""The tab: its routes. All that is served lies in this package, or in plotly's; nothing is fetched from elsewhere."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tensorboard import errors, plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins.base_plugin import FrontendMetadata, TBPlugin
from werkzeug import Request, Response

from lightning_interp.plugin.loader import SAMPLES
from lightning_interp.plugin.logged import LoggedEvents, Series, Where
from lightning_interp.summaries.event_log import PLUGIN_NAME, without_nan

SCRIPTS = ("index", "dom", "empty", "features", "figures", "overview", "picker", "server", "slider", "table", "theme")
STATIC = {"/style.css": ("style.css", "text/css"), **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS}}
DAY = 24 * 3600  # seconds: plotly's version stands in its address
ALL = 1_000_000  # events: TensorBoard's 0 means that it keeps every one
MOST = 50  # series in one answer

_log = logging.getLogger(__name__)
Answer = Callable[[Request, Where], Mapping[str, Any]]


class BadRequestError(Exception):
    """The address asks for something that cannot be."""


class Tab(TBPlugin):
    """A dynamic plugin of TensorBoard that reads through its data provider.

    Args:
        context: TensorBoard's; `multiplexer` is not used, it is None where the fast loader reads.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: Any) -> None:
        samples = (context.sampling_hints or {}).get(PLUGIN_NAME, SAMPLES)
        self._logged = LoggedEvents(context.data_provider, samples or ALL)

    def get_plugin_apps(self) -> dict[str, Any]:
        """{route: WSGI application}; TensorBoard itself answers 404 to every other."""
        answers: dict[str, Answer] = {
            "/runs": self._runs,
            "/history": self._history,
            "/event": self._event,
            "/records": self._records,
            "/features": self._features,
        }
        files = {route: _safe(functools.partial(_static, *file)) for route, file in STATIC.items()}
        data = {route: _safe(functools.partial(_json, answer)) for route, answer in answers.items()}
        return {**files, **data, "/plotly.min.js": _safe(_plotly)}

    def is_active(self) -> bool:
        """False: whether there is data, TensorBoard asks the data provider."""
        return False

    def data_plugin_names(self) -> tuple[str, ...]:
        """Whose data makes the tab active."""
        return (PLUGIN_NAME,)

    def frontend_metadata(self) -> FrontendMetadata:
        """Where the page's module is."""
        return FrontendMetadata(es_module_path="/index.js", tab_name="Interp", disable_reload=True)

    @functools.cached_property
    def _views(self) -> Any:
        from lightning_interp.plugin.views import Views  # the figures: not needed for TensorBoard to start

        return Views(self._logged)

    def _runs(self, request: Request, where: Where) -> Mapping[str, Any]:
        return dict(self._views.runs(where))

    def _history(self, request: Request, where: Where) -> Mapping[str, Any]:
        return dict(self._views.history(where, _series(request)))

    def _event(self, request: Request, where: Where) -> Mapping[str, Any]:
        measure = request.args.get("measure", "decodability")
        return dict(self._views.event(where, _series(request), _whole(request, "step"), measure))

    def _records(self, request: Request, where: Where) -> Mapping[str, Any]:
        (series,) = _series(request, most=1)
        return dict(self._views.records(where, series, _whole(request, "step"), max(0, _whole(request, "offset", 0))))

    def _features(self, request: Request, where: Where) -> Mapping[str, Any]:
        return dict(self._views.features(where, _series(request), _whole(request, "step")))


def _safe(respond: Callable[[Request], Response]) -> Any:
    """A WSGI application that answers every problem in JSON: TensorBoard goes on."""

    @Request.application
    def application(request: Request) -> Response:
        try:
            if request.method not in ("GET", "HEAD"):
                return _error(request, 405, f"{request.method} is not allowed here: use GET.")
            return respond(request)
        except BadRequestError as problem:
            return _error(request, 400, str(problem))
        except errors.PublicError as problem:  # of the data provider: no such experiment, no permission
            return _error(request, problem.http_code, str(problem))
        except Exception as problem:
            _log.exception("%s failed", request.path)
            return _error(request, 500, f"{type(problem).__name__}: {problem}")

    return application


def _json(answer: Answer, request: Request) -> Response:
    where = Where(plugin_util.context(request.environ), plugin_util.experiment_id(request.environ))
    found = answer(request, where)
    try:
        text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    except ValueError:  # two finite numbers may have no finite difference
        text = json.dumps(without_nan(found), allow_nan=False, separators=(",", ":"))
    return http_util.Respond(request, text, "application/json")


def _static(name: str, mimetype: str, request: Request) -> Response:
    return http_util.Respond(request, (Path(__file__).parent / "static" / name).read_bytes(), mimetype)


def _plotly(request: Request) -> Response:
    found = find_spec("plotly")
    path = None if found is None or found.origin is None else Path(found.origin).parent / "package_data" / "plotly.min.js"
    if path is None or not path.is_file():
        return _error(
            request, 404, 'The figures need plotly: pip install "lightning-interp[report]", then start TensorBoard again.'
        )
    return http_util.Respond(request, path.read_bytes(), "text/javascript", expires=DAY)


def _error(request: Request, code: int, text: str) -> Response:
    return http_util.Respond(request, json.dumps({"error": text}), "application/json", code=code)


def _series(request: Request, most: int = MOST) -> list[Series]:
    """The `series` of the address, each `["run", "prefix"]` as JSON."""
    found = []
    for text in dict.fromkeys(request.args.getlist("series")):
        try:
            one = json.loads(text)
        except (ValueError, RecursionError):
            one = None
        if not isinstance(one, list) or len(one) != 2 or not all(isinstance(part, str) for part in one):
            raise BadRequestError(f'`series` should be a run and a prefix as JSON, ["run", ""], but is {text[:200]!r}.')
        found.append(Series(*one))
    if not 1 <= len(found) <= most:
        raise BadRequestError(f"`series` should be given 1 to {most} times, but is given {len(found)} times.")
    return found


def _whole(request: Request, name: str, default: int | None = None) -> int:
    text = request.args.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError as problem:
        raise BadRequestError(f"`{name}` should be a whole number, but is {text!r}.") from problem
