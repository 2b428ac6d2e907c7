"""A frozen base too large for one device: its layers dealt out over the processes (FSDP2).

Ours stays whole on every process: it is small, and its gradients are summed by `engine`.
"""

from transformers import PreTrainedModel

from infini import engine
from infini.base import decoder_layers
from infini.layers import InfiniAdapter, InfiniLayer


def shard_base(model: PreTrainedModel) -> PreTrainedModel:
    """Shard every untouched layer, in place, if the launcher asks for it."""
    if not engine.shards():
        return model
    # Here, because it takes long and most runs do not need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(engine.device().type, (engine.processes(),))
    for slot in decoder_layers(model):
        layer = slot.original if isinstance(slot, InfiniAdapter) else slot
        if not isinstance(layer, InfiniLayer | FSDPModule):
            fully_shard(layer, mesh=mesh)
    return model
