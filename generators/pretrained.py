"""Trained generators from disk: ours, and those of other projects.

    generator = load_generator("runs/digits/generator")                             # a folder of save_pretrained
    generator = load_generator("G_ema.pth", architecture="biggan", num_classes=10)  # another project's file
    images = generator.sample(torch.tensor([3, 1, 4]))

Every generator comes with averaged weights where the file has them, in evaluation mode, frozen. Nothing is unpickled.
"""

import json
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generators.foreign import ARCHITECTURES, IGNORED
from generators.interface import ConditionalGenerator
from generators.networks import generator_class
from generators.settings import nearest

WEIGHTS = ("diffusion_pytorch_model.ema.safetensors", "diffusion_pytorch_model.safetensors")
# where training scripts put the generator in a dictionary of several things; averaged weights first
WRAPPINGS = (
    *("netG_ema_state_dict", "G_ema", "g_ema", "ema_state_dict", "ema"),
    *("netG_state_dict", "state_dict", "G", "g", "generator", "model", "net_state_dict"),
    *("generator_state_dict", "model_state_dict", "netG", "ema_model"),
)
# what wrappers (data parallel, compile, averaged models, a class around the network) put before every name
PREFIX = re.compile(r"^(module|_orig_mod|_forward_module|net|netG|model|generator|G|ema|ema_model|ema_module)\.")


def load_generator(
    path: str | Path,
    *,
    architecture: str | None = None,
    device: str | torch.device = "cpu",
    label_embedding: str | Path | None = None,
    **config: Any,
) -> ConditionalGenerator:
    """A trained generator, ready to sample.

    path: a folder written by `save_pretrained` (one of our generators, or a diffusers pipeline), the name of one on the
        Hugging Face hub, or, with `architecture`, a checkpoint file of another project.
    architecture: biggan, biggan_deep (BigGAN-PyTorch, cGAN-KD), ccgan_sagan, ccgan_sngan (CcGAN), studiogan_biggan or
        studiogan_sngan (PyTorch-StudioGAN's CIFAR models).
    label_embedding: CcGAN's label network (its y2h file). Without it the generator takes codes in place of labels.
    config: with `architecture`, what the file was trained with, under its project's names, see `foreign`; for a
        diffusers pipeline, or a generator of ours that is a flow, `num_steps` and `guidance` of the sampling.
    Raises ValueError: nothing to load there; another architecture, width or class count than described (the first key
    that differs is named); a key that is missing; a file that holds pickled objects.
    """
    path = Path(path)
    if architecture is None:
        if label_embedding is not None:
            raise ValueError("label_embedding belongs to a CcGAN checkpoint; give its architecture as well.")
        generator = load_folder(from_hub(path), config)
    elif architecture in ARCHITECTURES:
        generator = load_foreign(path, architecture, label_embedding, config)
    else:
        raise ValueError(f"architecture '{architecture}' is not known{nearest(architecture, ARCHITECTURES)}.")
    return generator.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def load_folder(path: Path, options: dict[str, Any]) -> ConditionalGenerator:
    """What `save_pretrained` wrote to the folder `path`."""
    if (path / "model_index.json").exists():
        from generators.diffusion import load_pipeline

        check_keys(options, ("num_steps", "guidance"), "a diffusers pipeline")
        return load_pipeline(path, **options)
    file = path / "config.json"
    if not file.exists():
        raise ValueError(
            f"{path} holds no generator (no {file.name}); give a folder written by save_pretrained, or a checkpoint file "
            "together with its architecture."
        )
    try:
        config = json.loads(file.read_text())
        name = config["_class_name"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ValueError(f"{file} is no configuration of a generator; write it with save_pretrained.") from None
    try:
        kind = generator_class(name, config.get("_module"))
    except LookupError as error:
        raise ValueError(f"{file} names {error.args[0]}") from None
    if others := [key for key in options if key not in kind.sampling_settings]:
        raise ValueError(f"{path} has its own {file.name}; leave out {', '.join(others)}.")
    generator = kind.from_config(config, **options)
    weights = next((path / name for name in WEIGHTS if (path / name).exists()), None)
    if weights is None:
        raise ValueError(f"{path} holds no weights ({WEIGHTS[-1]}); weights in another format, a pickle, are not read.")
    fill(generator, read_weights(weights), source=weights, title=f"the {name} of {file.name}")
    return generator


def load_foreign(
    path: Path, architecture: str, label_embedding: str | Path | None, config: dict[str, Any]
) -> ConditionalGenerator:
    """The generator in another project's checkpoint file."""
    foreign = ARCHITECTURES[architecture]
    check_keys(config, foreign.settings, f"the architecture '{architecture}'")
    settings = ", ".join(f"{key}={value}" for key, value in config.items())
    labels = {}
    if foreign.of_scalars:
        labels["label_input"] = "code" if label_embedding is None else "ili"
    elif label_embedding is not None:
        raise ValueError(f"label_embedding does not go with the architecture '{architecture}', which takes class ids.")
    generator = foreign.build(config, **labels)
    weights = foreign.adapt(read_weights(path), generator)
    title = f"a {architecture} generator ({settings})"
    fill(generator, weights, source=path, title=title, name_there=lambda key: foreign.name_there(key, generator))
    if label_embedding is not None:
        title = f"a label network of embed_dim {generator.config.label_dim}"
        fill(generator.encoder, read_weights(label_embedding), source=label_embedding, title=title)
    return generator


def check_keys(options: dict[str, Any], keywords: Iterable[str], subject: str) -> None:
    """Raise a ValueError for an option that is none of the keywords."""
    for key in options:
        if key not in keywords:
            raise ValueError(f"{key} does not describe {subject}{nearest(key, keywords)}.")


def fill(
    module: nn.Module,
    weights: dict[str, Tensor],
    *,
    source: str | Path,
    title: str,
    name_there: Callable[[str], str | None] = lambda key: key,
) -> None:
    """Load `weights` into `module`; `name_there(key)` is the file's name of our `key`, None if the file need not have it.
    Raises ValueError: a key that is missing, left over or of another shape; the message names it as the file does."""
    state, left = module.state_dict(), dict(weights)
    for key, ours in state.items():
        name = name_there(key)
        if name is None or (name not in left and key.endswith("num_batches_tracked")):
            continue
        if name not in left:
            raise ValueError(
                f"{source} lacks '{name}' of {title}: it is of another architecture or other settings, or incomplete."
            )
        theirs = left.pop(name)
        if theirs.shape != ours.shape and not theirs.numel() == ours.numel() == 1:
            raise ValueError(
                f"{source}: '{name}' is {tuple(theirs.shape)}, but {title} has {tuple(ours.shape)} there; describe the "
                "file's own architecture, width and number of classes."
            )
        state[key] = theirs.reshape(ours.shape)
    if extra := [name for name in left if not IGNORED.search(name)]:
        raise ValueError(
            f"{source} holds '{extra[0]}', for which {title} has no place: it is of another architecture or other settings."
        )
    module.load_state_dict(state)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The generator's tensors in a checkpoint file, without prefixes of wrappers; averaged weights where there are any.
    Raises ValueError: no such file, one that is cut off, one of pickled objects, or one without weights."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file; give the checkpoint itself.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds pickled Python objects, which could run any code when read, and is refused: where it was made, "
            "save the weights alone, torch.save(generator.state_dict(), file); StyleGAN2: scripts/convert_stylegan2.py."
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen types for a damaged file
        raise ValueError(
            f"{path} is cut off or no checkpoint ({type(error).__name__}: {error}); fetch it again, or delete {path.parent} "
            "if a run made it."
        ) from error
    if isinstance(content, dict):
        content = next((content[name] for name in WRAPPINGS if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        names = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds no weights of a generator (only: {names}); save its state_dict.")
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor) and name != "n_averaged"}
    while weights and len({name.split(".")[0] for name in weights}) == 1 and all(map(PREFIX.match, weights)):
        weights = {PREFIX.sub("", name): value for name, value in weights.items()}
    return weights


def from_hub(path: Path) -> Path:
    """`path`, or the local copy of the repository of that name ("user/name") on the Hugging Face hub.
    Raises ValueError: neither a folder here nor a repository that can be reached."""
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path.as_posix(), allow_patterns=["*.json", "*.safetensors", "*.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} holds no generator: no such folder here, nor on the hub ({reason}).") from error
