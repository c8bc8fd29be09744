"""Features that the model uses and nobody has named: found, judged, matched from event to event, and given a name."""

from lightning_interp.discovery.dictionary import Dictionary as Dictionary
from lightning_interp.discovery.dictionary import SplitDictionary as SplitDictionary
from lightning_interp.discovery.dictionary import TopKDictionary as TopKDictionary
from lightning_interp.discovery.discovery import Discovery as Discovery
from lightning_interp.discovery.features import Feature as Feature
from lightning_interp.discovery.features import FeatureEvent as FeatureEvent
from lightning_interp.discovery.promotion import FeatureLabel as FeatureLabel

__all__ = [
    "Dictionary",
    "Discovery",
    "Feature",
    "FeatureEvent",
    "FeatureLabel",
    "SplitDictionary",
    "TopKDictionary",
]
