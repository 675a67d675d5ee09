"""The README's example runs as it stands, only shorter."""

import re

import torch

from tests.conftest import ROOT


def test_the_library_example_runs(tmp_path, monkeypatch):
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    short = re.sub(r"steps=\d+", "steps=30", example)
    short = short.replace("num_samples=5000", "num_samples=100, chunk_size=100, subsample={'steps': 50, 'burn_in': 20}")
    assert short.count("steps=30") == 3
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
