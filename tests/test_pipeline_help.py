"""A generator that is helped, from a configuration: by the run's teacher, a backbone without labels, networks of others."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from gankd.experiment.config import load_config
from gankd.models import build_model
from gankd.pipeline import Run
from tests.test_pipeline_judge import judged as judged

FEATURES = {"network": "teacher", "channels": 8}
GUIDANCE = {"teachers": ["teacher"], "statistics": 0.1}


@pytest.fixture
def helped(judged) -> dict:
    """The tiny experiment whose generator is helped by its teacher, judged by others."""
    judged["generator"] |= {"features": FEATURES, "guidance": GUIDANCE | {"until_real": False}}
    return judged


def run(path, *overrides: str) -> Run:
    return Run(load_config(path, list(overrides)), Accelerator(cpu=True))


def weights(channels: int, outputs: int, file) -> dict:
    """The configuration of a network whose weights are in a file."""
    network = build_model("small_resnet", outputs, channels, widths=[4, 6])
    save_file(network.state_dict(), file)
    return {"options": {"widths": [4, 6]}, "checkpoint": str(file), "mean": [0.5] * channels, "std": [0.25] * channels}


def test_a_helped_generator_is_judged_and_its_teacher_comes_first(helped, write_config) -> None:
    experiment = run(write_config(helped))
    assert [stage.name for stage in experiment.generator.reads] == ["teacher"]
    metrics = experiment.run()
    assert set(metrics["generator"]["judged"]["helpers"]) == {"teacher"}
    plain = dict(helped, name="plain", generator={**helped["generator"], "features": None, "guidance": None})
    without = run(write_config(plain))
    assert not torch.equal(*(next(each.generator.result.parameters()) for each in (experiment, without)))


def test_networks_of_others_help(helped, write_config, tmp_path) -> None:
    file = tmp_path / "network.safetensors"
    classes = 2 if "classes" not in helped.get("data", {}) else helped["data"]["classes"]
    settings = weights(1, run(write_config(helped)).task.num_outputs or classes, file)
    helped["generator"] |= {"features": {"network": settings, "channels": 8}}
    helped["generator"]["guidance"]["teachers"] = ["teacher", settings]
    path = write_config(helped)
    first = run(path)
    first.run("generator")
    save_file({name: value + 0.1 for name, value in torch_file(file).items()}, file)
    with pytest.raises(ValueError, match="generator"):
        run(path).run("generator")


def torch_file(file) -> dict:
    from safetensors.torch import load_file

    return load_file(file)


def test_the_backbone_helps_and_then_it_does_not_judge(helped, write_config) -> None:
    helped["generator"] |= {"features": {"network": "backbone"}, "guidance": None}
    metrics = run(write_config(helped)).run()
    assert "student" in metrics["generator"]["judged"]["generated"]
    assert "frechet" not in metrics["generator"]["judged"]["generated"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["generator.judge.by=teacher"], "generator.judge.by"),
        (["generator.features.network=backbone", "generator.judge.by=backbone"], "generator.features.network"),
        (["generator.features.taps=[nowhere]"], "generator.features: .* has no module 'nowhere'"),
        (["generator.features.taps=[head]"], "discriminators look at maps"),
        (["generator.features.network=student"], "generator.features.network"),
        (["generator.features.network={name: small_resnet}"], "has no checkpoint"),
        (["generator.guidance.weight=-1"], "generator.guidance.weight"),
        (["generator={network: unet, steps: 2, features: {}}"], "is for a game with a discriminator"),
    ],
)
def test_help_that_cannot_be_is_one_sentence_before_anything_runs(overrides, sentence, helped, write_config) -> None:
    path = write_config(helped)
    with pytest.raises(ValueError, match=sentence):
        run(path, *overrides).run()
    assert not (path.parent / "runs").exists()


def test_a_helper_of_another_number_of_classes_is_refused(helped, write_config, tmp_path) -> None:
    settings = weights(1, 7, tmp_path / "network.safetensors") | {"num_outputs": 7}
    helped["generator"]["guidance"] = {"teachers": [settings]}
    with pytest.raises(ValueError, match="generator.guidance: the teacher answers 8 images with"):
        run(write_config(helped)).run()
