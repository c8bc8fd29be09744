"""Events: what they hold, and the same as rows, as text and as HTML."""

from lightning_interp.events.event import Event as Event
from lightning_interp.events.event import to_records as to_records
from lightning_interp.events.fields import EventFields as EventFields
from lightning_interp.events.records import Record as Record
from lightning_interp.events.records import magnitude_of as magnitude_of
from lightning_interp.events.text import HIDDEN_FACTOR as HIDDEN_FACTOR
from lightning_interp.results import ByLevel as ByLevel
from lightning_interp.results import Effect as Effect
from lightning_interp.results import Groups as Groups
from lightning_interp.results import Score as Score
from lightning_interp.results import Sensitivity as Sensitivity
from lightning_interp.results import Share as Share
