"""`DiscoverFeatures`: looks for what a model uses and nobody has named, while Lightning trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_interp.callbacks.probing import ProbingCallback
from lightning_interp.discovery import Dictionary, Discovery, FeatureEvent
from lightning_interp.summaries.features import write_features
from lightning_interp.variables import Confounder, Variable


class DiscoverFeatures(ProbingCallback[Discovery]):
    """Finds features at a layer that no variable names, and says how much of the unexplained output goes with each.

    Features are ranked by suspicion: what contributes much, has the wrong sign exactly where the model errs, and was there from
    the beginning, looks like a shortcut. Look at the strongest and the weakest samples, and if they show something, `promote`
    it: the confounder that comes out needs no labels, and serves in a monitor, in `SuppressConfounder` and in `edit`. That
    goes into another run (or on with this one): what is suppressed should not be what it is read by, so a promoted feature is
    read by a frozen copy of the network. The run itself is not changed by this callback.

    Logged: `discovery/{layer}/{feature}` and `discovery/{layer}/unnamed`, shares of the output's variance. TensorBoard also
    gets the strongest and weakest samples of the three most suspicious features, and the library's own tab everything.

    Cost of an event: an eigenvalue problem of the layer's size and a forward pass for each of three features through what
    stands above the layer; on the demo 2 bare forward passes over the same samples.

    Args:
        layer: the submodule to look at, by its full name below the LightningModule; late ones hold what the output is made of.
        variables: the named ones, concepts and confounders with labels: what they explain is left out. None at all is allowed.
        output: the module whose output is to be explained; None: the result of the LightningModule's own forward.
        target: where the task's label sits in a batch; None: the second element of a tuple or list, else what needs it is
            withheld.
        inputs: what passes of its own give the model: a key, an index or a dotted path gives one positional argument, a list of
            keys keyword arguments, a function `(model, batch) -> output` does as it likes; None takes the first element of a
            tuple or list, else the batch itself.
        data: "val", "train" (the last batches before an event; where a run is stopped among them and resumed, those before are
            not in it, which is said), a DataLoader or a Dataset.
        every_n_epochs: events at epochs 0, n, 2n, …; with neither, every epoch.
        every_n_train_steps: events at optimizer steps n, 2n, …; not with data="val".
        dictionary: how features are found: `SplitDictionary()`, the default, or `TopKDictionary()`.
        features: how many are reported, 1 to 10.
        weights: "balanced" or "natural", of the equation on the named variables.
        pooling: how the activation becomes one vector per sample: "mean", "first", "last", "masked_mean".
        max_samples: samples that count at an event.
        show: strongest and weakest samples kept of each feature; 0: none.
        decode: a function, or `"pkg.mod:function"`, that turns the token ids of one sample into text.
        dataloader_idx: which validation loader, where there are several.
        cluster: where the id of the source sits that several samples share.
        sample_id: where the sample's id sits; None: its content is its id.
        prefix: put before every logged key.
        max_events: events kept; beyond it every other old one is let go.
        seed: of the halves of the samples and of the dictionary's starts.

    Raises:
        InterpError: an argument is not usable; the message names the nearest that is.

    Example:
        >>> from lightning_interp import Concept, DiscoverFeatures
        >>> discover = DiscoverFeatures("encoder.conv4", [Concept("digit")], output="head", target="label", inputs="image")
        >>> discover.latest is None
        True
    """

    def __init__(
        self,
        layer: str,
        variables: Sequence[Variable] = (),
        output: str | None = None,
        target: str | int | Callable[[Any], Any] | None = None,
        inputs: str | int | Sequence[str] | Callable[..., Any] | None = None,
        data: Literal["val", "train"] | DataLoader | Dataset = "val",
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        dictionary: Dictionary | None = None,
        features: int = 10,
        weights: Literal["balanced", "natural"] = "balanced",
        pooling: str | Callable[[Tensor], Tensor] = "mean",
        max_samples: int = 4096,
        show: int = 8,
        decode: str | Callable[[Tensor], str] | None = None,
        dataloader_idx: int = 0,
        cluster: str | int | Callable[[Any], Any] | None = None,
        sample_id: str | int | Callable[[Any], Any] | None = None,
        prefix: str = "",
        max_events: int = 1000,
        seed: int = 0,
    ) -> None:
        self.discovery = Discovery(
            None,
            layer,
            variables,
            output,
            target,
            inputs,
            dictionary,
            features,
            weights,
            pooling,
            max_samples,
            show,
            decode,
            cluster,
            sample_id,
            max_events,
            seed,
        )
        super().__init__(self.discovery, data, every_n_epochs, every_n_train_steps, dataloader_idx, prefix)

    @property
    def latest(self) -> FeatureEvent | None:
        """The last event, with its samples; None before the first."""
        return self.discovery.latest

    @property
    def history(self) -> tuple[FeatureEvent, ...]:
        """All events, also those before a resume; only the last has its samples."""
        return self.discovery.history

    def promote(self, feature: str, name: str, kind: Literal["binary", "continuous"] = "binary") -> Confounder:
        """A confounder made of a feature, see `Discovery.promote`: it needs no label."""
        return self.discovery.promote(feature, name, kind)

    def _show(self, writers: Sequence[Any], event: FeatureEvent, step: int) -> None:
        for writer in writers:
            write_features(writer, event.to_dict(), step, self.prefix)

    @property
    def state_key(self) -> str:
        """Two discoveries in one Trainer need different layers or prefixes."""
        return f"{type(self).__qualname__}{{'layer': {self.discovery.layer!r}, 'prefix': {self.prefix!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors, so that checkpoints load with `weights_only=True`."""
        return {**super().state_dict(), "discovery": self.discovery.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as if never stopped."""
        super().load_state_dict(state_dict)
        self.discovery.load_state_dict(state_dict["discovery"])
