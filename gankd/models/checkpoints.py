"""Weights from files: our own, and those that other people's training code writes.

model = load_checkpoint(build_model("resnet32x4"), "resnet32x4_vanilla/ckpt_epoch_240.pth")
"""

import argparse
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gankd.models.inputs import CARD, recall

AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
CONTAINERS = (*AVERAGED, "state_dict", "model_state_dict", "model", "net", "network", "student")
PREFIXES = ("module.", "_orig_mod.", "student.", "net.", "model.", "network.", "backbone.", "ema_model.", "encoder.")
COUNTERS = ("num_batches_tracked", "n_averaged")  # what files from before torch 0.4.1 lack; what AveragedModel adds


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load weights from a .safetensors file or, without unpickling, from a .pt/.pth file; strict; returns the model.

    Understood are a bare state dict and one inside a training script's dictionary (`state_dict`, `model_state_dict`,
    `model`, ...; of averaged weights beside others, the averaged, with a warning); keys behind the prefixes of wrappers
    (`module.`, `_orig_mod.`, `net.`, `model.`, `backbone.`, a distiller's `student.`); a last layer of another name; any
    floating precision. What `remember` left in the file the model then says too.
    Raises ValueError: the file cannot be read, or its keys or shapes are not those of `model`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the checkpoint's path.")
    state = _read(path)
    network = _unwrapped(model)
    own = network.state_dict()
    found = min(_without_wrappers(state, own), key=lambda candidate: _distance(candidate, own))
    found = _with_own_head(found, own, network)
    if misfit := _misfit(found, own):
        raise ValueError(f"{path} does not fit {getattr(network, 'name', type(network).__name__)}: {misfit}.")
    # a dictionary without versions, so that num_batches_tracked may lack
    network.load_state_dict({key: value for key, value in found.items() if key in own})
    recall(network, _card(state))
    return model


def read_card(path: str | Path) -> dict[str, Any]:
    """What `remember` left in a file of weights: `input_normalization` (means, standard deviations) and `output_task`, see
    `card_of_task`; {} where it left nothing."""
    return _card(_read(Path(path)))


def _card(state: Mapping[str, Any]) -> dict[str, Any]:
    return next((entry[CARD] for entry in getattr(state, "_metadata", {}).values() if CARD in entry), {})


def _read(path: Path) -> Mapping[str, Any]:
    return _state_dict_in(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path), path)


def _state_dict_in(saved: Any, path: Path) -> Mapping[str, Any]:
    """The weights among what a training script saved beside them."""
    state = saved
    while isinstance(state, Mapping):
        inner = [key for key in CONTAINERS if isinstance(state.get(key), Mapping) and state[key]]
        if not inner:
            break
        if inner[0] in AVERAGED and len(inner) > 1:
            warnings.warn(
                f"{path}: taken are the averaged weights ({inner[0]}), which usually are better than those beside them "
                f"({inner[1]}); save the others alone to have them.",
                stacklevel=3,
            )
        state = state[inner[0]]
    if not isinstance(state, Mapping) or not state or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no state dict but a {type(state).__name__}; save model.state_dict().")
    packed = [key for key, value in state.items() if not isinstance(value, Tensor) and "_packed_params" in key]
    if packed or any(isinstance(value, Tensor) and value.is_quantized for value in state.values()):
        raise ValueError(f"{path} holds quantised weights; give those of the network before it was quantised.")
    return state


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of what torch.compile or a data-parallel wrapper made of it."""
    if hasattr(model, "_orig_mod"):
        return _unwrapped(model._orig_mod)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return _unwrapped(model.module)
    return model


def _without_wrappers(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """The same weights under the keys that they have without each of the wrappers that may be around them."""
    state = {key.replace("._orig_mod.", "."): value for key, value in state.items()}
    yield state
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            inside = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
            yield from _without_wrappers(inside, own)
            if len(inside) < len(state):  # a head beside the backbone
                beside = {key: value for key, value in state.items() if not key.startswith(prefix)}
                yield from _without_wrappers({**beside, **inside}, own)


def _distance(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> int:
    """How many keys are on one side alone."""
    return sum(not key.endswith(COUNTERS) for key in state.keys() ^ own.keys())


def _with_own_head(state: dict[str, Any], own: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """The same, with the last linear layer under the model's name where the file has no other unknown key."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    alone = {key for key in state.keys() - own.keys() if not key.endswith(COUNTERS)}
    lacking = {key for key in own.keys() - state.keys() if not key.endswith(COUNTERS)}
    if len({key.rpartition(".")[0] for key in alone}) != 1 or not linears:
        return state
    renamed = {key: f"{linears[-1]}.{key.rpartition('.')[2]}" for key in alone}
    fits = lacking.issuperset(renamed.values())
    return {renamed.get(key, key): value for key, value in state.items()} if fits else state


def _misfit(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> str:
    """Why weights do not fit, or nothing."""
    lacking = [key for key in own if key not in state and not key.endswith(COUNTERS)]
    extra = [key for key in state if key not in own and not key.endswith(COUNTERS)]
    shapes = [
        (key, list(state[key].shape), list(own[key].shape))
        for key in own
        if key in state and isinstance(state[key], Tensor) and state[key].shape != own[key].shape
    ]
    if not (lacking or extra or shapes):
        return ""
    parts = []
    if shapes:
        parts.append("; ".join(f"{key} is {theirs} in the file and {ours} here" for key, theirs, ours in shapes[:3]))
        widths = {(theirs[0], ours[0]) for _, theirs, ours in shapes}
        if not (lacking or extra) and len(shapes) <= 2 and len(widths) == 1:  # of the last layer alone
            theirs, ours = widths.pop()
            parts.append(f"the file's network has {theirs} outputs, this one {ours}: the classes must be the same")
    for what, keys in (("Missing", lacking), ("Unexpected", extra)):
        if keys:
            parts.append(f"{what} keys: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}")
    if lacking and not extra and all("downsample" in key for key in lacking):
        parts.append("its shortcuts have no parameters: take the network of the same name with _a, e.g. resnet20_a")
    return "; ".join(parts)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (no mapping)
            state._metadata = {"": {CARD: json.loads(card)}} if (card := (file.metadata() or {}).get(CARD)) else {}
            return state
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be read, it may be cut off ({error}): fetch it again, or delete {path.parent} if a run "
            "made it."
        ) from error


def _read_pickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options beside the weights; inert
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} holds a scripted program, not weights: save scripted.state_dict() of it, or give a Teacher the "
                "program as torch.jit.load reads it."
            ) from error
        raise ValueError(
            f"{path} is cut off, or holds more than tensors and is not unpickled ({type(error).__name__}): "
            "save it again as torch.save(model.state_dict(), path) or as .safetensors."
        ) from error
