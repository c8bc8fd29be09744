"""Models of several processes, as far as one process can tell; the rest is in tests/callbacks/test_ddp.py."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_interp import capture
from lightning_interp.activations.select import find_module, module_names, select
from lightning_interp.activations.spread import sharded, unwrapped, whole
from lightning_interp.errors import InterpError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.fixture
def group(tmp_path):
    """Of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_plain_model_is_left_alone():
    model = net()
    before = [p.clone() for p in model.parameters()]
    assert not sharded(model)
    with whole(model), unwrapped(model):
        model(torch.ones(4, 2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_names_lead_through_ddps_wrapper(group):
    wrapper = DistributedDataParallel(net())
    assert list(module_names(wrapper)) == ["", "0", "1", "2"]
    assert find_module(wrapper, "2", "output").module is wrapper.module[2]
    assert select(wrapper, ["0"])["0"].now(wrapper, "0").module is wrapper.module[0]
    with capture(wrapper, ["1"]) as found:
        wrapper(torch.ones(4, 2))
    assert found["1"].shape == (4, 3)


def test_ddps_wrapper_does_nothing_but_call(group):
    class Noticed(DistributedDataParallel):
        calls = 0

        def _pre_forward(self, *inputs, **kwargs):
            Noticed.calls += 1
            return super()._pre_forward(*inputs, **kwargs)

    wrapper = Noticed(net())
    x = torch.ones(4, 2)
    with unwrapped(wrapper):
        assert torch.equal(wrapper(x), wrapper.module(x))
    assert Noticed.calls == 0
    assert "forward" not in vars(wrapper)
    wrapper(x)
    assert Noticed.calls == 1


@pytest.mark.parametrize("fails", [False, True])
def test_fsdp2s_settings_come_back(group, fails):
    model = net()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert sharded(model)

    def settings():
        groups = [m._get_fsdp_state()._fsdp_param_group for m in (model[0], model)]
        return [(g.is_unsharded, g.post_forward_mesh_info, g.reshard_after_backward) for g in groups]

    x = torch.ones(4, 2)
    model(x).sum().backward()
    before = settings()
    try:
        with whole(model):
            assert all(whole_now for whole_now, _, _ in settings())
            model(x)
            assert all(whole_now for whole_now, _, _ in settings())
            if fails:
                raise RuntimeError("the user's own")
    except RuntimeError:
        assert fails
    assert settings() == before
    model(x).sum().backward()


def test_deepspeeds_stage_3_allows_no_pass_of_our_own():
    model = net()
    model[0].weight.ds_id = 0  # DeepSpeed's mark
    assert sharded(model)
    with pytest.raises(InterpError, match="DeepSpeed's stage 3 has sharded allows no pass"), whole(model):
        pass
