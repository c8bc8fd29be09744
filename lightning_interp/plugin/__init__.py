"""The library's own tab in TensorBoard: routes and a static page. Torch-free, for every start of TensorBoard imports it."""

from lightning_interp.plugin.loader import TabLoader as TabLoader
