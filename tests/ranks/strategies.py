"""How several processes train one model."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

COLLECTIVE_LIMIT = timedelta(seconds=60)  # then whoever waits gives up


def strategy_of(devices: int, sharded: bool = False, **options):
    """For so many processes on the CPU; options of `DDPStrategy`."""
    if devices == 1:
        return "auto"
    told = {"process_group_backend": "gloo", "timeout": COLLECTIVE_LIMIT}
    if not sharded:
        return DDPStrategy(**told, **options)
    return ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False, **told)


class Sharded:
    """FSDP2 for a LightningModule whose parts stand in `encoder` and `head`: every layer with weights, and the whole."""

    def configure_model(self):
        for part in [m for m in self.modules() if isinstance(m, nn.Linear)]:
            fully_shard(part, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])
