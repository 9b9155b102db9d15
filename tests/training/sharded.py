"""One of the processes of `test_sharded.py`: gradients of a sharded model (FSDP2) against those of a whole one."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_masking import mask_penalties, patch_model
from hf_masking.training.process_group import clean_exit

from ..modeling.families import build, tokens


def model_of(spec):
    return patch_model(build("llama"), spec, check=False).train()


def step(model, ids):
    with mask_penalties() as penalties:
        loss = model(ids, labels=ids, use_cache=False).loss
    (loss + 0.1 * sum(penalties)).backward()


def compare(spec):
    whole, sharded, ids = model_of(spec), model_of(spec), tokens(4, 30)
    mesh = init_device_mesh("cpu", (2,))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    step(whole, ids)
    step(sharded, ids.chunk(2)[dist.get_rank()])
    for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), one.grad, atol=1e-6, rtol=1e-4, msg=f"{spec}: {name}")


if __name__ == "__main__":
    with clean_exit():
        dist.init_process_group("gloo")
        for spec in sys.argv[1:]:
            compare(spec)
