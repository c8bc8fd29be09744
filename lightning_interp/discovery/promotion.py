"""`FeatureLabel`: a discovered feature as the label of a variable, read from the sample by a frozen copy of the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_interp.activations.capture import hooked
from lightning_interp.activations.pooling import MODES, Pooling, tensor_of
from lightning_interp.activations.select import Layer, device_of, select
from lightning_interp.batches import Inputs
from lightning_interp.discovery.dictionary import Code, code_of, code_state
from lightning_interp.errors import InterpError, LabelError, LayerError
from lightning_interp.passes import own_pass
from lightning_interp.passes.replay import placed
from lightning_interp.reading import token_mask

STATE_VERSION = 1
HALF = (torch.float16, torch.bfloat16)


class _Reached(Exception):  # noqa: N818  # no error: the copy has run as far as it is needed
    pass


class FeatureLabel:
    """A function of the batch: who has the feature, or its code.

    The copy is frozen, in evaluation mode, on the device of the batch; it runs as far as the layer, in full precision. Of
    a layer that runs several times in a pass the last run is read.

    Args:
        model: the network; it is copied.
        layer: where the feature is read, by its full name.
        code: how it is read there; one column.
        inputs: what the network is given of a batch.
        pooling: how the activation becomes one vector per sample.
        reverse: whether the samples under the threshold have it.
        binary: whether 0 and 1 are given, or the code itself.

    Raises:
        LayerError: the network cannot be copied.
    """

    def __init__(
        self, model: nn.Module, layer: str, code: Code, inputs: Inputs, pooling: Pooling, reverse: bool, binary: bool
    ) -> None:
        self.network = _copied(model).eval().requires_grad_(False)
        if any(p.dtype in HALF for p in self.network.parameters()):
            self.network.float()
        self.layer, self.code, self.inputs, self.pooling = layer, code, inputs, pooling
        self.reverse, self.binary = reverse, binary
        self._where: Layer = select(self.network, [layer])[layer]
        self._runs: int | None = None  # of the layer in a pass, known after the first

    def __call__(self, batch: Any) -> Tensor:
        """Values `[n]`, float64: 0 and 1, or codes.

        Raises:
            LabelError: the layer did not run, or gave no row for each sample.
        """
        first = self.inputs.first(batch)
        if first is None:
            raise LabelError("a promoted feature is read from the batch's inputs, and there is no tensor; check `inputs`.")
        if device_of(self.network) != first.device:
            self.network.to(first.device)
        seen: list[Tensor] = []

        def read(name: str, layer: Layer, output: Any) -> None:
            a = tensor_of(output, layer.key)
            if a is not None:
                seen.append(self.pooling.pool(a, layer.module, token_mask(batch)).cpu())
            if a is not None and len(seen) == self._runs:
                raise _Reached

        with own_pass(self.network, gradients=False), torch.autocast(first.device.type, enabled=False):
            try:
                with hooked({self.layer: self._where}, read):
                    self.inputs.call(self.network, _full(placed(batch, first.device)))
            except _Reached:
                pass
        self._runs = len(seen)
        if not seen or len(seen[-1]) != len(first):
            raise LabelError(f"layer '{self.layer}' gave no row for each of {len(first)} samples.")
        value = self.code.codes(seen[-1])[:, 0]
        if self.binary:
            value = (value > self.code.threshold).double()
        return 1 - value if self.reverse else value

    def save(self, path: str | Path) -> None:
        """Write the feature and the copy's weights, to be read again by `load`."""
        state = {
            "version": STATE_VERSION,
            "network": self.network.state_dict(),
            "layer": self.layer,
            "code": code_state(self.code),
            "inputs": None if callable(self.inputs.place) else self.inputs.place,
            "by function": callable(self.inputs.place),
            "pooling": self.pooling.mode if self.pooling.liftable else None,
            "reverse": self.reverse,
            "binary": self.binary,
        }
        torch.save(state, path)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, inputs: Any = None, pooling: Any = None) -> FeatureLabel:
        """Read what `save` wrote.

        Args:
            path: the file; it is read without pickle, and nothing that it names is imported.
            model: a network of the same class, whatever its weights.
            inputs: what the network is given of a batch, where that was a function.
            pooling: how the activation becomes one vector per sample, where that was a function.

        Raises:
            LayerError: the weights do not fit the network.
            LabelError: `inputs` or `pooling` was a function, and is not given.
            InterpError: the file is of a later version.
        """
        state: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["version"] > STATE_VERSION:
            raise InterpError(
                f"'{path}' has version {state['version']}, this library reads up to {STATE_VERSION}; update lightning-interp."
            )
        place = state["inputs"] if inputs is None else inputs
        mode = state["pooling"] if pooling is None else pooling
        if inputs is None and (state["by function"] or (isinstance(place, str) and ":" in place)):
            raise LabelError(f"`inputs` was a function where '{path}' was written, which a file cannot hold; give it again.")
        if pooling is None and mode not in MODES:
            raise LabelError(f"`pooling` was a function where '{path}' was written, which a file cannot hold; give it again.")
        fresh = _copied(model)
        try:
            fresh.load_state_dict(state["network"])
        except RuntimeError as problem:
            raise LayerError(f"`model` does not fit the network in '{path}': {problem}") from problem
        code = code_of(state["code"])
        return cls(fresh, state["layer"], code, Inputs(place), Pooling(mode), state["reverse"], state["binary"])

    def __repr__(self) -> str:
        return f"FeatureLabel(layer={self.layer!r}, binary={self.binary})"


def _full(batch: Any) -> Any:
    return apply_to_collection(batch, Tensor, lambda t: t.float() if t.dtype in HALF else t)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)  # gradients stay behind, and so does a LightningModule's Trainer
    except Exception as problem:  # whatever the user keeps in the network
        raise LayerError(
            f"a promoted feature is read by a copy of the network, and {type(model).__name__} cannot be copied: "
            f"{type(problem).__name__}: {problem}"
        ) from problem
