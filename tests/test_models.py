"""Networks by name, weights from files, and a trained network on disk and back."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gankd.models import NETWORKS, ModelConfig, SmallResNet, build_model, load_checkpoint
from gankd.models.inputs import Normalize
from gankd.models.store import load_model, save_model
from gankd.tasks import Classification, Regression


def network(seed: int = 0, **keywords) -> SmallResNet:
    torch.manual_seed(seed)
    model = SmallResNet(3, in_channels=1, widths=(4, 8), **keywords)
    with torch.no_grad():
        for buffer in model.buffers():  # buffers at their initial values would hide that they were forgotten
            buffer.add_(1)
    return model


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NETWORKS, "torchvision:resnet18"])
@pytest.mark.parametrize(("num_classes", "size"), [(10, 32), (1, 16)])
def test_a_network_has_as_many_outputs_as_asked(name: str, num_classes: int, size: int) -> None:
    model = build_model(name, num_classes=num_classes, in_channels=3).eval()
    assert model(torch.rand(2, 3, size, size)).shape == (2, num_classes)


@pytest.mark.parametrize("stem_stride", [1, 2])
@pytest.mark.parametrize("size", [4, 7, 16])
def test_the_small_network_takes_any_size_and_widths(size: int, stem_stride: int) -> None:
    model = build_model("small_resnet", num_classes=5, in_channels=2, widths=[4, 6, 8], stem_stride=stem_stride)
    outputs = model(torch.rand(3, 2, size, size))
    assert outputs.shape == (3, 5)
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_small_network_halves_from_the_second_stage_on() -> None:
    model, shapes = network(stem_stride=2), []
    for stage in (model.stem, *model.stages):
        stage.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model(torch.rand(1, 1, 16, 16))
    assert shapes == [(4, 8, 8), (4, 8, 8), (8, 4, 4)]


def test_the_example_student_is_as_small_as_the_configurations_say() -> None:
    student = build_model("small_resnet", num_classes=10, in_channels=1, widths=[8, 16], stem_stride=2)
    assert 4_900 < sum(parameter.numel() for parameter in student.parameters()) < 5_200


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("smal_resnet", r"unknown network 'smal_resnet'; did you mean 'small_resnet'"),
        ("zzz", r"unknown network 'zzz'; valid: .*small_resnet, timm:NAME, torchvision:NAME"),
        ("nowhere:resnet18", r"unknown network 'nowhere:resnet18'"),
        ("torchvision:resnet19", r"torchvision has no classifier 'resnet19'; did you mean 'resnet1"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_model(name)


@pytest.mark.parametrize("name", ["small_resnet", "torchvision:resnet18"])
def test_an_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="'width' is no option of|width"):
        build_model(name, width=[8])


def test_a_misspelt_option_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'width' is no option of small_resnet; did you mean 'widths'"):
        build_model("small_resnet", width=[8])


def test_a_network_without_a_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="widths"):
        build_model("small_resnet", widths=[])


def test_torchvision_takes_colour_only() -> None:
    with pytest.raises(ValueError, match=r"torchvision:resnet18 takes colour images; set data\.channels: 3"):
        build_model("torchvision:resnet18", in_channels=1)


# --- weights ----------------------------------------------------------------------------------------------------------


def wrap(state: dict, form: str) -> dict:
    prefixed = {f"module.{key}": value for key, value in state.items()}
    return {
        "plain": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "module": prefixed,
        "state_dict of module": {"state_dict": prefixed},
    }[form]


@pytest.mark.parametrize("form", ["plain", "state_dict", "model", "module", "state_dict of module"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_state_dicts_are_read_however_they_are_wrapped(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(network(1).state_dict(), form), path)
    assert equal(load_checkpoint(network(0), path), network(1))


@pytest.mark.parametrize("form", ["plain", "module"])
def test_safetensors_are_read(tmp_path: Path, form: str) -> None:
    save_file(wrap(network(1).state_dict(), form), tmp_path / "weights.safetensors")
    assert equal(load_checkpoint(network(0), tmp_path / "weights.safetensors"), network(1))


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_checkpoint(network(0), path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_another_shape_or_with_other_keys_are_refused(tmp_path: Path, suffix: str) -> None:
    write = save_file if suffix == ".safetensors" else torch.save
    wider = SmallResNet(5, in_channels=1, widths=(4, 8)).state_dict()
    fewer = {key: value for key, value in network().state_dict().items() if key != "head.bias"}
    more = {**network().state_dict(), "extra.weight": torch.zeros(1)}
    for number, (state, key) in enumerate([(wider, "head.weight"), (fewer, "head.bias"), (more, "extra.weight")]):
        path = tmp_path / f"weights{number}{suffix}"
        write(state, path)
        sentence = refusal(path)
        assert "does not fit SmallResNet" in sentence and key in sentence


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_file_with_python_objects_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": network().state_dict(), "args": Bomb()}, tmp_path / "weights.pt")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("weights.pt", "raw.pth"):
        assert "is not unpickled" in refusal(tmp_path / name)
        assert "model.state_dict()" in refusal(tmp_path / name), "the way out"
    assert not (tmp_path / "exploded").exists()


def test_a_whole_pickled_network_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "weights.pt")
    assert "is not unpickled" in refusal(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}, {"state_dict": 3}])
def test_a_file_of_tensors_that_is_no_state_dict_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "weights.pt")
    refusal(tmp_path / "weights.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("length", [0, 7, 600])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, length: int) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:length])
    refusal(path)


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path)


# --- a trained network on disk ----------------------------------------------------------------------------------------


def saved(directory: Path, model: nn.Module, **keywords) -> Normalize:
    normalize = Normalize(torch.tensor([0.1307]), torch.tensor([1 / 3]))
    config = ModelConfig(options={"widths": [4, 8]})
    save_model(directory, model, config, normalize, num_outputs=3, image_shape=(1, 8, 8), **keywords)
    return normalize


def test_a_saved_network_comes_back_bit_for_bit_in_evaluation_mode(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last)
    normalize = saved(tmp_path, model)
    loaded, loaded_normalize = load_model(tmp_path)
    assert equal(loaded, model) and not loaded.training
    assert torch.equal(loaded_normalize.mean, normalize.mean) and torch.equal(loaded_normalize.std, normalize.std)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded(loaded_normalize(images)), model.eval()(normalize(images)))


def test_a_saved_network_says_what_one_must_know_to_use_it(tmp_path: Path) -> None:
    saved(tmp_path, network())
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["image_shape"] == [1, 8, 8] and card["num_classes"] == 3
    assert card["name"] == "small_resnet" and card["options"] == {"widths": [4, 8]}


def test_a_loaded_network_knows_its_input_normalisation(tmp_path: Path) -> None:
    normalize = saved(tmp_path, network())
    mean, std = load_model(tmp_path)[0].input_normalization
    assert torch.equal(torch.tensor(mean), normalize.mean.flatten())
    assert torch.equal(torch.tensor(std), normalize.std.flatten())


@pytest.mark.parametrize(
    "task",
    [Classification(class_names=("cat", "dog", "eel")), Regression(-1 / 3, 2.5, mean=0.1, std=0.7, unit="years"), None],
)
def test_a_loaded_network_knows_what_its_outputs_mean(tmp_path: Path, task) -> None:
    saved(tmp_path, network(), task=task)
    assert getattr(load_model(tmp_path)[0], "output_task", None) == task


def test_a_folder_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))} holds no trained network"):
        load_model(tmp_path)


def test_a_folder_that_lost_its_weights_is_named(tmp_path: Path) -> None:
    saved(tmp_path, network())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_model(tmp_path)
