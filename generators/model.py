"""Generators that can be saved: diffusers models, a folder of safetensors and config.json.

    generator = SNGANGenerator.from_pretrained("runs/digits/generator")
    generator.save_pretrained("elsewhere")

The base class of a network of your own, too:

    class Tiny(GeneratorModel):
        @register_to_config
        def __init__(self, resolution, image_channels, num_classes=None, label_range=None, latent_dim=16): ...
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from generators.checkpoints import replace_whole, telling_failed_writes
from generators.interface import ConditionalGenerator

__all__ = ["GeneratorModel", "register_to_config"]


class GeneratorModel(ConditionalGenerator, ModelMixin, ConfigMixin):
    """Base of the generators that have a folder; what `__init__` takes is registered by `register_to_config`."""

    config_name = "config.json"
    sampling_settings: tuple[str, ...] = ()
    """Which of its settings may be others when it is loaded, as they shape no weight."""
    trained_steps: int | None = None
    """How many steps its training took, where that is known."""

    @classmethod
    def from_config(cls, config: Any, **settings: Any) -> Any:
        """As in diffusers; the names of the classes and the number of steps that `save_pretrained` wrote come with it."""
        built = super().from_config(config, **settings)
        generator, facts = (
            built[0] if isinstance(built, tuple) else built,
            config if isinstance(config, Mapping) else {},
        )
        if names := facts.get("_class_names"):
            generator.class_names = tuple(names)
        generator.trained_steps = facts.get("_trained_steps")
        return built

    def save_pretrained(self, save_directory: str | Path, **settings) -> None:
        """Write the folder; every file in it is always whole, and the weights come before the configuration.

        settings: those of diffusers' `ModelMixin.save_pretrained`.
        Raises OSError: one sentence, when the disk is full or the folder may not be written.
        """
        folder = Path(save_directory)
        if settings.get("push_to_hub"):
            settings.setdefault("repo_id", folder.name)
        with telling_failed_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as temporary:
                super().save_pretrained(temporary, **settings)
                config = Path(temporary, self.config_name)
                facts = {"_class_names": self.class_names, "_trained_steps": self.trained_steps}
                facts = {name: value for name, value in facts.items() if value}
                if not type(self).__module__.startswith("generators."):  # the file that must be imported to load it
                    facts["_module"] = type(self).__module__
                values = {**json.loads(config.read_text()), **facts}
                config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
                for file in sorted(config.parent.iterdir(), key=lambda file: file == config):
                    with replace_whole(folder / file.name) as place:
                        os.replace(file, place)
