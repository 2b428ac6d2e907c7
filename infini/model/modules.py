"""Finds the modules and parameters that a retrofit added to a model."""

from torch import nn
from transformers import PreTrainedModel

from infini.memory.retained import RetainedPairs
from infini.model.architectures import decoder_layers
from infini.model.peft_adapters import active_module, active_modules
from infini.model.segmented.layers import MemoryModule
from infini.model.window.layer import WindowLayer


def segmented_layers(model: PreTrainedModel) -> dict[int, MemoryModule]:
    """Return our parallel or replaced decoder layers by index; empty for other models."""
    layers = enumerate(map(active_module, decoder_layers(model)))
    return {index: layer for index, layer in layers if isinstance(layer, MemoryModule)}


def window_layers(model: PreTrainedModel) -> dict[int, WindowLayer]:
    """Return the window module of every decoder layer by index; empty for other models."""
    return {
        module.layer_index: module
        for layer in decoder_layers(model)
        for module in active_modules(layer)
        if isinstance(module, WindowLayer)
    }


def retained_modules(model: PreTrainedModel) -> dict[int, RetainedPairs]:
    """Return the retained pairs of every decoder layer that has any, by index."""
    layers = window_layers(model).items()
    return {index: layer.retained for index, layer in layers if layer.retained is not None}


def has_memory(model: PreTrainedModel) -> bool:
    """Return whether the model is retrofitted."""
    return bool(segmented_layers(model) or window_layers(model))


def infini_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return exactly the parameters that the retrofit added, by `layers.<index>.<name>`."""
    own = [(index, module.own_parameters()) for index, module in segmented_layers(model).items()]
    own += [(index, module.named_parameters()) for index, module in window_layers(model).items()]
    return {
        f"layers.{index}.{name}": parameter
        for index, parameters in own
        for name, parameter in parameters
    }


def trained_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the parameters of `infini_parameters` that training changes.

    The others are fitted once, by `infini.fit_policy`.
    """
    fitted = {
        id(parameter)
        for retained in retained_modules(model).values()
        for parameter in retained.policy_weights.values()
    }
    own = infini_parameters(model).items()
    return {name: parameter for name, parameter in own if id(parameter) not in fitted}


def parameter_groups(
    model: PreTrainedModel,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Split `trained_parameters` by learning rate.

    Returns:
        Weights, and the gates that modules name in `gate_parameters`: gates of the memory, its
        write strength and decay, the bias of retained pairs, α.
    """
    gates = {
        id(getattr(module, name))
        for module in model.modules()
        for name in getattr(module, "gate_parameters", ())
    }
    trained = trained_parameters(model).items()
    return (
        {name: parameter for name, parameter in trained if id(parameter) not in gates},
        {name: parameter for name, parameter in trained if id(parameter) in gates},
    )


def frozen_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the base's own decoder layers that still run, without replaced ones."""
    layers: list[nn.Module] = []
    for layer in map(active_module, decoder_layers(model)):
        if not isinstance(layer, MemoryModule):
            layers.append(layer)
        elif layer.runs_original:
            layers.append(layer.original)
    return layers


def added_parameters(model: PreTrainedModel) -> int:
    """Return how many parameters the retrofit adds to the base, net of replaced layers."""
    modules = segmented_layers(model).values()
    replaced = [module.original for module in modules if not module.runs_original]
    added = sum(parameter.numel() for parameter in infini_parameters(model).values())
    return added - sum(p.numel() for layer in replaced for p in layer.parameters())
