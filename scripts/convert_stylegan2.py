"""Write a StyleGAN2-ADA generator to a folder that `generators.load_generator` reads, which unpickles nothing.

    python convert_stylegan2.py network.pkl cifar10 --repository stylegan2-ada-pytorch

Run it once, where the network was trained: it needs NVIDIA's repository and its environment, and of gankd only this file.
Reading the pickle runs code that is stored in it: convert only files whose maker you trust.
"""

import argparse
import json
import struct
import sys
from pathlib import Path


def describe(generator, truncation: float, noise: str) -> dict:
    """The configuration of our StyleGAN2Generator for NVIDIA's `generator`."""
    synthesis, mapping = generator.synthesis, generator.mapping
    blocks = [getattr(synthesis, f"b{size}") for size in synthesis.block_resolutions]
    known = all(block.architecture == "skip" for block in blocks) and abs(mapping.fc0.bias_gain - 0.01) < 1e-9
    filters = [block.resample_filter.sum(dim=0).cpu() * 8 for block in blocks]
    if not known or any(filter_.tolist() != [1, 3, 3, 1] for filter_ in filters):
        raise SystemExit("only generators of the architecture 'skip' with the filter 1, 3, 3, 1 and usual mapping fit.")
    return {
        "_class_name": "StyleGAN2Generator",
        "resolution": generator.img_resolution,
        "image_channels": generator.img_channels,
        "widths": [block.conv1.weight.shape[0] for block in blocks],
        "latent_dim": generator.z_dim,
        "w_dim": generator.w_dim,
        "num_classes": max(generator.c_dim, 1),
        "mapping_layers": mapping.num_layers,
        "truncation": truncation,
        "noise": noise,
        "clamp": blocks[0].conv1.conv_clamp,
    }


def write_safetensors(path: Path, tensors: dict) -> None:
    """The safetensors format: the header's length, the header (JSON), the float32 values. No package needed."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().float().contiguous().numpy().tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="the pickle, a file or an address")
    parser.add_argument("folder", type=Path, help="where to write config.json and the weights")
    parser.add_argument("--repository", required=True, help="a copy of NVlabs/stylegan2-ada-pytorch")
    parser.add_argument("--truncation", type=float, default=1.0, help="psi; 1 draws from the whole distribution")
    parser.add_argument("--noise", choices=["const", "random", "none"], default="const")
    arguments = parser.parse_args()
    sys.path.insert(0, arguments.repository)
    import dnnlib
    import legacy

    with dnnlib.util.open_url(arguments.network) as file:
        generator = legacy.load_network_pkl(file)["G_ema"]  # the averaged weights
    config = describe(generator, arguments.truncation, arguments.noise)
    weights = {key: value for key, value in generator.state_dict().items() if not key.endswith("resample_filter")}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=2))
    write_safetensors(arguments.folder / "diffusion_pytorch_model.safetensors", weights)
    size, count = config["resolution"], sum(value.numel() for value in weights.values())
    print(
        f"{arguments.folder}: {size}x{size} images, {config['num_classes']} classes, {count / 1e6:.1f} million numbers"
    )


if __name__ == "__main__":
    main()
