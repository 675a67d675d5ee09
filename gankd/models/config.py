"""What the user says about a network."""

from pathlib import Path
from typing import Any

from pydantic import GetJsonSchemaHandler, ValidationInfo, field_validator
from torch import nn

from gankd.models.checkpoints import load_checkpoint
from gankd.models.networks import NETWORKS, build_model, check_name, checked_options
from generators.settings import Settings

DEFAULT = "small_resnet"


class ModelConfig(Settings):
    """A network by name."""

    name: str = DEFAULT
    """Name of the architecture: small_resnet, a network of the CIFAR literature (resnet8x4, wrn_16_2, vgg8, MobileNetV2,
    ...; resnet20_a and its like have shortcuts without parameters), `torchvision:NAME` for any classifier of torchvision,
    `timm:NAME`, or the name under which a plugin registered its own."""
    options: dict[str, Any] = {}
    """Keyword arguments of the network's builder, e.g. {widths: [8, 16], stem_stride: 2}."""
    checkpoint: Path | None = None
    """Weights to start from: a .safetensors file, or a .pt/.pth file (read without unpickling) with a state dict or in
    one of the forms of RepDistiller, mdistiller, CRD, timm and Lightning."""

    def build(self, num_outputs: int, in_channels: int) -> nn.Module:
        """The network with its checkpoint's weights, or fresh ones; raises as `build_model` and `load_checkpoint`."""
        network = build_model(self.name, num_outputs, in_channels, **self.options)
        return load_checkpoint(network, self.checkpoint) if self.checkpoint else network

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        check_name(name)
        return name

    @field_validator("options")
    @classmethod
    def _are_options_of_the_network(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.data.get("name") in NETWORKS:
            checked_options(info.data["name"], options)
        return options

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        schema["properties"]["name"]["examples"] = [*NETWORKS, "torchvision:NAME", "timm:NAME"]
        schema["allOf"] = [
            {
                "if": {"properties": {"name": {"const": name}}, "required": [] if name == DEFAULT else ["name"]},
                "then": {"properties": {"options": options}},
            }
            for name in NETWORKS
            if (options := NETWORKS.options(name).model_json_schema()).get("properties")
        ]
        return schema
