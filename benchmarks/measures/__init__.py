"""How much a net uses a variable: what people compute today, each by its own package, and ours, on the same images."""

from importlib.util import find_spec

PACKAGES = {"captum": "captum", "concept_erasure": "concept-erasure", "sklearn": "scikit-learn"}


def missing() -> str | None:
    """Why nothing can be compared: which packages are not installed."""
    names = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    return f"skipped, not installed: {', '.join(names)} (pip install 'lightning-interp[bench]')" if names else None
