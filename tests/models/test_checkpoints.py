"""Checkpoints as the CIFAR distillation repositories write them; `tests/test_models.py` has our own files."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gankd.models import build_model, load_checkpoint

MODULE, STUDENT, TEACHER = "module.", "module.student.", "module.teacher."


def network(seed: int, name: str = "wrn_16_1") -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(name, num_classes=7)
    with torch.no_grad():
        for buffer in model.buffers():  # buffers at their initial values would hide that they were forgotten
            buffer.add_(1)
    return model


def prefixed(state: dict, prefix: str) -> dict:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without_counters(state: dict) -> dict:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def write(path: Path, form: str, state: dict) -> None:
    """One of the files that repositories leave behind."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.05, "params": [0]}]}
    options = argparse.Namespace(model="wrn_16_1", lr_decay_epochs=[150, 180, 210], learning_rate=0.05, trial="1")
    teacher = prefixed(build_model("resnet8").state_dict(), TEACHER)
    content = {
        "teacher_best": {"epoch": 3, "model": state, "best_acc": torch.tensor(70.5), "optimizer": optimizer},
        "student_best": {"epoch": 3, "model": state, "best_acc": torch.tensor(70.5)},
        "legacy_epoch": {"epoch": 240, "model": without_counters(state), "accuracy": torch.tensor(70.5)},
        "last_with_opt": {"opt": options, "model": state, "optimizer": optimizer},
        "last_with_opt_parallel": {"opt": options, "model": prefixed(state, MODULE)},
        "student_only": {"model": state},
        "distiller_best": {
            "epoch": 3,
            "model": {**prefixed(state, STUDENT), **teacher, "module.connectors.0.weight": torch.ones(1)},
            "optimizer": optimizer,
            "best_acc": 70.5,
        },
    }[form]
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy_epoch")


FORMATS = [
    "teacher_best",
    "student_best",
    "legacy_epoch",
    "last_with_opt",
    "last_with_opt_parallel",
    "student_only",
    "distiller_best",
]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_loads_bit_for_bit_and_returns_the_network(tmp_path: Path, form: str) -> None:
    trained, fresh = network(1), network(0)
    write(tmp_path / "checkpoint.pth", form, trained.state_dict())
    assert load_checkpoint(fresh, tmp_path / "checkpoint.pth") is fresh
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), trained.eval()(images))


@pytest.mark.parametrize("form", FORMATS)
def test_only_the_counters_may_be_absent(tmp_path: Path, form: str) -> None:
    path, state = tmp_path / "checkpoint.pth", network(1).state_dict()
    write(path, form, without_counters(state))
    load_checkpoint(network(0), path)
    for key in ("block2.layer.0.convShortcut.weight", "bn1.running_var", "fc.bias"):
        write(path, form, {other: value for other, value in state.items() if other != key})
        with pytest.raises(ValueError, match=rf"does not fit wrn_16_1: .*Missing key.*{key}"):
            load_checkpoint(network(0), path)
    write(path, form, {**state, "surplus.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"does not fit wrn_16_1: .*Unexpected key.*surplus\.weight"):
        load_checkpoint(network(0), path)


@pytest.mark.parametrize(
    ("expected", "given"),
    [("resnet8x4", "resnet8"), ("wrn_16_1", "wrn_16_2"), ("vgg11", "vgg8"), ("ShuffleV2", "ShuffleV1")],
)
def test_a_checkpoint_of_another_network_names_the_expected_one(tmp_path: Path, expected: str, given: str) -> None:
    torch.save({"model": network(0, given).state_dict()}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=rf"checkpoint\.pth does not fit {expected}: ") as caught:
        load_checkpoint(network(0, expected), tmp_path / "checkpoint.pth")
    assert "\n" not in str(caught.value)


def test_a_networks_own_names_are_not_taken_for_a_wrappers(tmp_path: Path) -> None:
    trained, fresh = (nn.ModuleDict({"student": nn.Linear(2, 2), "module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(trained.state_dict(), tmp_path / "checkpoint.pth")
    load_checkpoint(fresh, tmp_path / "checkpoint.pth")
    assert all(torch.equal(fresh.state_dict()[key], value) for key, value in trained.state_dict().items())


class Bomb(argparse.Namespace):
    """What unpickling would run; its base class does not excuse it."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_options_do_not_open_the_door_to_other_objects(
    tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": network(1).state_dict(), "opt": argparse.Namespace(device=Bomb())}
    torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(content["opt"], protocol=2))
    for name in ("last.pth", "raw.pth"):
        with pytest.raises(ValueError, match="is not unpickled"):
            load_checkpoint(network(0), tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_reading_options_leaves_torch_as_strict_as_before(tmp_path: Path) -> None:
    write(tmp_path / "last.pth", "last_with_opt", network(1).state_dict())
    load_checkpoint(network(0), tmp_path / "last.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


# --- G: what people's training code leaves behind ----------------------------------------------------------------------


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


PREFIXES = [
    "module.",
    "_orig_mod.",
    "net.",
    "model.",
    "backbone.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.net.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str, container: str | None) -> None:
    state = prefixed(network(1).state_dict(), prefix)
    if container == "state_dict":  # a LightningModule has a criterion beside its network
        state["criterion.weight"] = torch.ones(7)
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "weights.pt")
    assert equal(load_checkpoint(network(0), tmp_path / "weights.pt"), network(1))


def test_a_head_beside_the_backbone_is_found(tmp_path: Path) -> None:
    state = network(1).state_dict()
    torch.save(
        {key if key.startswith("fc.") else f"backbone.{key}": state[key] for key in state}, tmp_path / "weights.pt"
    )
    assert equal(load_checkpoint(network(0), tmp_path / "weights.pt"), network(1))


def test_a_part_that_was_compiled_is_found(tmp_path: Path) -> None:
    state = network(1).state_dict()
    compiled = {key.replace("block2.", "block2._orig_mod."): state[key] for key in state}
    torch.save(compiled, tmp_path / "weights.pt")
    assert equal(load_checkpoint(network(0), tmp_path / "weights.pt"), network(1))


@pytest.mark.parametrize("name", ["head", "classifier.1", "linear"])
def test_a_last_layer_of_another_name_is_found(tmp_path: Path, name: str) -> None:
    state = network(1).state_dict()
    torch.save({key.replace("fc.", f"{name}."): state[key] for key in state}, tmp_path / "weights.pt")
    assert equal(load_checkpoint(network(0), tmp_path / "weights.pt"), network(1))


@pytest.mark.parametrize("name", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_are_preferred_and_it_is_said(tmp_path: Path, name: str) -> None:
    torch.save(
        {"state_dict": network(0).state_dict(), name: prefixed(network(1).state_dict(), "module.")}, tmp_path / "w.pt"
    )
    with pytest.warns(
        UserWarning, match=rf"w\.pt: taken are the averaged weights \({name}\).*those beside them \(state_dict"
    ):
        assert equal(load_checkpoint(network(0), tmp_path / "w.pt"), network(1))


def test_a_network_averaged_by_torch_is_read(tmp_path: Path) -> None:
    torch.save(torch.optim.swa_utils.AveragedModel(network(1)).state_dict(), tmp_path / "weights.pt")
    assert equal(load_checkpoint(network(0), tmp_path / "weights.pt"), network(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(network(1).to(dtype).state_dict(), tmp_path / "weights.pt")
    loaded = load_checkpoint(network(0), tmp_path / "weights.pt")
    assert all(each.dtype == torch.float32 for each in loaded.parameters())
    torch.testing.assert_close(loaded.fc.weight, network(1).fc.weight, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrapped_network_takes_weights(tmp_path: Path, wrap) -> None:
    model = network(0)
    torch.save(network(1).state_dict(), tmp_path / "weights.pt")
    load_checkpoint(wrap(model), tmp_path / "weights.pt")
    assert equal(model, network(1))


def refusal(tmp_path: Path, saved, model: nn.Module) -> str:
    if saved is not None:
        torch.save(saved, tmp_path / "weights.pt")
    with pytest.raises(ValueError) as caught:
        load_checkpoint(model, tmp_path / "weights.pt")
    assert "weights.pt" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_other_classes_are_refused_with_the_layer_and_its_shapes(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, build_model("wrn_16_1", 9).state_dict(), network(0))
    assert "fc.weight is [9, 64] in the file and [7, 64] here" in sentence
    assert "the file's network has 9 outputs, this one 7" in sentence


def test_a_network_with_shortcuts_without_parameters_is_named(tmp_path: Path) -> None:
    sentence = refusal(tmp_path, build_model("resnet20_a", 7).state_dict(), build_model("resnet20", 7))
    assert "its shortcuts have no parameters: take the network of the same name with _a" in sentence
    torch.save({"state_dict": prefixed(build_model("resnet20_a", 7).state_dict(), "module.")}, tmp_path / "weights.pt")
    load_checkpoint(build_model("resnet20_a", 7), tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_quantised_networks_are_refused_in_a_sentence(tmp_path: Path) -> None:
    model = network(0).eval()
    torch.jit.save(torch.jit.trace(model, torch.rand(1, 3, 8, 8)), tmp_path / "weights.pt")
    assert "scripted program, not weights" in refusal(tmp_path, None, model)
    quantised = torch.ao.quantization.quantize_dynamic(network(0), {nn.Linear}, dtype=torch.qint8)
    assert "quantised" in refusal(tmp_path, quantised.state_dict(), model) or "more than tensors" in refusal(
        tmp_path, quantised.state_dict(), model
    )


def test_parameter_free_shortcuts_are_those_of_the_paper() -> None:
    """Option A: every second pixel, channels padded with zeros on both sides."""
    shortcut = build_model("resnet20_a").layer2[0].downsample
    x = torch.rand(2, 16, 4, 4)
    out = shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2]) and not out[:, :8].any() and not out[:, 24:].any()
