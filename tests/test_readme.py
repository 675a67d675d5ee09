"""The README's example runs as it stands, only shorter."""

import re

import torch

import gankd
import generators
from tests.commands import ROOT


def test_the_library_example_runs(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    short = re.sub(r"steps=\d+", "steps=10", example)
    short = short.replace(
        "num_samples=5000", "num_samples=100, chunk_size=100, force=True, subsample={'steps': 50, 'burn_in': 20}"
    )
    assert short.count("steps=10") == 3
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(short, names)
    student = names["student"]
    assert isinstance(student, torch.nn.Module) and not student.training
    assert len(names["synthetic"]) == 100
    assert set(student.state_dict()) == set(
        names["gankd"].build_model("small_resnet", 10, 1, widths=[8, 16]).state_dict()
    )
    assert 0 < names["gankd"].evaluate(student, names["data"].test)["top1"] <= 100


def test_the_example_of_backbones_runs(tmp_path, monkeypatch):
    example = (ROOT / "README.md").read_text().split("## Backbones without labels")[1]
    example = re.search(r"```python\n(.*?)```", example, re.DOTALL).group(1)
    short = re.sub(r"steps=\d+", "steps=3", example).replace("50_000", "200")
    assert short.count("steps=3") == 2 and short.count("200") == 1
    monkeypatch.chdir(tmp_path)
    data = gankd.load_data("digits", image_size=16, labelled=100)
    networks = {"widths": (16, 8), "discriminator_widths": (8,), "steps": 1, "batch_size": 8}
    generator = generators.train(data.train, num_classes=10, **networks)
    names = {"gankd": gankd, "data": data, "generator": generator}
    exec(short, names)
    assert len(names["pool"]) == 200 and 0 < gankd.evaluate(names["student"], data.test)["top1"] <= 100
