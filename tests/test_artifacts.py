"""What becomes of a stage's directory: made, continued, skipped, refused or replaced; and what a fingerprint tells apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gankd.data.sets import ImageSet, LazyImages
from gankd.experiment.artifacts import FORMAT, PENDING, STAGE_FILE, describe_difference
from gankd.experiment.artifacts import StageDirectory as Stage
from gankd.fingerprints import fingerprint
from generators.checkpoints import read_checkpoint, replace_whole, save_checkpoint
from generators.networks.sngan import SNGANGenerator

INPUTS = {"config": {"steps": 3, "widths": (8, 16)}, "seed": 0, "data": "abc"}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator()


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# --- the life of a stage ----------------------------------------------------------------------------------------------


def test_a_stage_is_new_then_cut_off_then_finished(tmp_path: Path, accelerator: Accelerator) -> None:
    directory = tmp_path / "a" / "stage"
    assert Stage(directory, INPUTS).state() == "new"
    assert not directory.exists(), "looking must not write"

    stage = Stage(directory, INPUTS)
    assert stage.begin(accelerator) is False
    assert Stage(directory, INPUTS).state() == "cut off"
    assert Stage(directory, INPUTS).begin(accelerator) is False, "what was cut off is to be continued"

    stage.finish(accelerator, validation={"top1": 50.0}, seconds=1)
    again = Stage(directory, INPUTS)
    assert again.state() == "finished"
    assert again.begin(accelerator) is True
    assert again.results == {"validation": {"top1": 50.0}, "seconds": 1}


def test_a_cut_off_stage_keeps_its_files_and_a_finished_one_drops_its_checkpoint(tmp_path, accelerator) -> None:
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    (stage.directory / "checkpoint.pt").write_bytes(b"state")
    (stage.directory / "weights").write_bytes(b"w")
    Stage(tmp_path / "stage", INPUTS).begin(accelerator)
    assert {"checkpoint.pt", "weights"} <= set(files(stage.directory))
    stage.finish(accelerator)
    assert set(files(stage.directory)) == {"weights", STAGE_FILE}


def test_tuples_and_lists_are_the_same_inputs(tmp_path: Path, accelerator: Accelerator) -> None:
    Stage(tmp_path / "stage", {"widths": (8, 16)}).begin(accelerator)
    (tmp_path / "stage" / "weights").write_bytes(b"w")
    assert Stage(tmp_path / "stage", {"widths": [8, 16]}).state() == "cut off"
    assert Stage(tmp_path / "stage", {"widths": [16, 8]}).state() == "other"


@pytest.mark.parametrize("finished", [False, True])
def test_other_inputs_are_refused_and_nothing_is_touched(tmp_path, accelerator, finished: bool) -> None:
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    (stage.directory / "weights").write_bytes(b"w")
    if finished:
        stage.finish(accelerator, seconds=1)
    before = files(tmp_path)
    other = Stage(tmp_path / "stage", {**INPUTS, "config": {"steps": 4, "widths": [8, 16]}, "seed": 1})
    assert other.state() == "other"
    with pytest.raises(ValueError, match=r"config\.steps: 3 there, 4 here; seed: 0 there, 1 here.*--replace"):
        other.begin(accelerator)
    assert files(tmp_path) == before


@pytest.mark.parametrize("finished", [False, True])
def test_replace_removes_what_other_inputs_made_and_only_that(tmp_path, accelerator, finished: bool) -> None:
    for name in ("stage", "neighbour"):
        stage = Stage(tmp_path / name, INPUTS)
        stage.begin(accelerator)
        (stage.directory / "weights").write_bytes(b"w")
        if finished:
            stage.finish(accelerator, seconds=1)
    neighbour = files(tmp_path / "neighbour")
    replacing = Stage(tmp_path / "stage", {**INPUTS, "seed": 1}, replace=True)
    assert replacing.begin(accelerator) is False
    assert set(files(tmp_path / "stage")) == {STAGE_FILE}
    assert Stage(tmp_path / "stage", {**INPUTS, "seed": 1}).state() == "cut off"
    assert files(tmp_path / "neighbour") == neighbour
    assert sorted(path.name for path in tmp_path.iterdir()) == ["neighbour", "stage"]


def test_replace_does_not_repeat_a_finished_stage_of_the_same_inputs(tmp_path, accelerator) -> None:
    stage = Stage(tmp_path / "stage", INPUTS, replace=True)
    stage.begin(accelerator)
    stage.finish(accelerator, seconds=1)
    before = files(tmp_path)
    assert Stage(tmp_path / "stage", INPUTS, replace=True).begin(accelerator) is True
    assert files(tmp_path) == before


def test_replace_succeeds_where_an_earlier_removal_was_cut_off(tmp_path, accelerator) -> None:
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    (tmp_path / ".stage.replaced" / "deep").mkdir(parents=True)
    (tmp_path / ".stage.replaced" / "deep" / "weights").write_bytes(b"w")
    assert Stage(tmp_path / "stage", {"seed": 1}, replace=True).begin(accelerator) is False
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_directory_of_somebody_else_is_refused_and_untouched(tmp_path, accelerator, replace: bool) -> None:
    (tmp_path / "stage" / "thesis").mkdir(parents=True)
    (tmp_path / "stage" / "thesis" / "chapter").write_text("1")
    before = files(tmp_path)
    with pytest.raises(ValueError, match="is not empty and was not made by gankd"):
        Stage(tmp_path / "stage", INPUTS, replace=replace).begin(accelerator)
    assert files(tmp_path) == before


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path, accelerator) -> None:
    (tmp_path / "stage").write_text("mine")
    with pytest.raises(ValueError, match="stage"):
        Stage(tmp_path / "stage", INPUTS).begin(accelerator)
    assert (tmp_path / "stage").read_text() == "mine"


@pytest.mark.parametrize("leftovers", [[], [f".{STAGE_FILE}.tmp"]])
def test_leftovers_of_an_interrupted_write_do_not_block(tmp_path, accelerator, leftovers: list[str]) -> None:
    (tmp_path / "stage").mkdir()
    for name in leftovers:
        (tmp_path / "stage" / name).write_text('{"fini')
    stage = Stage(tmp_path / "stage", INPUTS)
    assert stage.begin(accelerator) is False
    stage.finish(accelerator)
    assert Stage(tmp_path / "stage", INPUTS).state() == "finished"


def test_later_stages_name_a_stage_by_the_files_that_it_made(tmp_path: Path, accelerator: Accelerator) -> None:
    stage = Stage(tmp_path / "stage", INPUTS)
    assert stage.content == PENDING
    stage.begin(accelerator)
    (stage.directory / "model.safetensors").write_bytes(b"w")
    assert stage.content == PENDING
    stage.finish(accelerator, seconds=1)
    content = stage.content
    same, other = Stage(tmp_path / "same", INPUTS), Stage(tmp_path / "other", INPUTS)
    for directory, weights in ((same, b"w"), (other, b"v")):
        directory.begin(accelerator)
        (directory.directory / "model.safetensors").write_bytes(weights)
        directory.finish(accelerator, seconds=2)
    assert same.content == content != other.content


def test_what_an_earlier_stage_has_still_to_make_is_compared_later(tmp_path: Path, accelerator: Accelerator) -> None:
    stage = Stage(tmp_path / "stage", {"seed": 0, "reads": {"teacher": "abc"}})
    stage.begin(accelerator)
    stage.finish(accelerator)
    assert Stage(stage.directory, {"seed": 0, "reads": {"teacher": PENDING}}).refusal() is None
    assert "seed: 0 there, 1 here" in Stage(stage.directory, {"seed": 1, "reads": {"teacher": PENDING}}).refusal()
    assert "reads.teacher" in Stage(stage.directory, {"seed": 0, "reads": {"teacher": "def"}}).refusal()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_file_that_is_no_longer_what_was_written_is_refused(tmp_path, accelerator, damage: str) -> None:
    """F30: finished students had no checksum."""
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    weights = stage.directory / "model.safetensors"
    weights.write_bytes(b"weights")
    stage.finish(accelerator)
    weights.write_bytes(b"weighty") if damage == "changed" else weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is .*delete .*stage and run the same command again"):
        Stage(tmp_path / "stage", INPUTS).begin(accelerator)


def test_a_cut_off_stage_that_holds_nothing_does_not_block_a_corrected_command(tmp_path, accelerator) -> None:
    """F30: nothing was made yet, so nothing would be lost."""
    Stage(tmp_path / "stage", INPUTS).begin(accelerator)
    corrected = Stage(tmp_path / "stage", {**INPUTS, "seed": 1})
    assert corrected.refusal() is None and corrected.begin(accelerator) is False
    assert json.loads(corrected.file.read_text())["inputs"]["seed"] == 1


@pytest.mark.parametrize("record", [{"finished": True, "inputs": INPUTS, "results": {}}, {"format": FORMAT - 1}])
def test_what_an_earlier_gankd_made_is_refused_with_a_sentence(tmp_path, accelerator, record: dict) -> None:
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    stage.finish(accelerator)
    stage.file.write_text(json.dumps({"finished": True, "inputs": {}, "results": {}, **record}))
    with pytest.raises(ValueError, match="was made by an earlier gankd.*the whole task, the normalisation.*--replace"):
        Stage(tmp_path / "stage", INPUTS).begin(accelerator)
    assert Stage(tmp_path / "stage", INPUTS, replace=True).begin(accelerator) is False


@pytest.mark.parametrize("text", ["[]", "{}", "3", '{"finished": true}'])
def test_a_record_that_is_json_of_something_else_is_named(tmp_path, accelerator, text: str) -> None:
    """G: damaged JSON in a run folder."""
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    stage.file.write_text(text)
    with pytest.raises(ValueError, match=r"stage\.json is no record of a stage; delete"):
        Stage(tmp_path / "stage", INPUTS).begin(accelerator)


# --- what differs -----------------------------------------------------------------------------------------------------


def test_a_difference_names_the_first_keys_by_their_path() -> None:
    there = {"a": {"x": 1, "y": {"z": "p"}}, "b": [1], "c": 0, "d": 0}
    here = {"a": {"x": 1, "y": {"z": "q"}}, "b": [1, 2], "c": 1, "d": 1}
    assert describe_difference(there, here) == (
        'a.y.z: "p" there, "q" here; b: [1] there, [1, 2] here; c: 0 there, 1 here; ...'
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.text("ab", min_size=1), children, max_size=3),
    max_leaves=6,
)
groups = st.dictionaries(st.text("abc", min_size=1, max_size=2), json_values, max_size=3)


@settings(deadline=None)
@given(there=groups, here=groups)
def test_whatever_differs_is_described(there: dict, here: dict) -> None:
    assert bool(describe_difference(there, here)) == (there != here)


# --- whole files ------------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with replace_whole(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_whole(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with replace_whole(path) as temporary:
        temporary.write_text("new")
    assert files(tmp_path) == {"folder/file": b"new"}


def test_a_checkpoint_reads_back_and_a_damaged_one_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "weights": torch.arange(3.0), "nested": {"a": [1, "b", None]}})
    state = read_checkpoint(path)
    assert state["step"] == 3 and state["nested"] == {"a": [1, "b", None]}
    assert torch.equal(state["weights"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read as a checkpoint .*delete it to train anew"):
        read_checkpoint(path)


def test_a_checkpoint_with_python_objects_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.pt")


# --- fingerprints -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=12),
    position=st.integers(0, 11),
    change=st.integers(1, 255),
)
def test_changing_any_byte_changes_the_fingerprint(values: list[int], position: int, change: int) -> None:
    tensor = torch.tensor(values, dtype=torch.uint8)
    other = tensor.clone()
    other[position % len(values)] = (int(other[position % len(values)]) + change) % 256
    assert fingerprint(tensor) == fingerprint(tensor.clone()) != fingerprint(other)


def test_shape_and_type_are_content_but_memory_layout_is_not() -> None:
    tensor = torch.randn(2, 3, 4, 4)
    assert fingerprint(tensor) == fingerprint(tensor.to(memory_format=torch.channels_last))
    assert fingerprint(tensor.mT) == fingerprint(tensor.mT.contiguous())
    assert fingerprint(tensor) == fingerprint(tensor.requires_grad_())
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(16, dtype=torch.uint8)]
    assert len({fingerprint(zero) for zero in zeros}) == 4
    assert fingerprint(torch.zeros(())) != fingerprint(torch.zeros(1))
    assert fingerprint(torch.zeros(0)) == fingerprint(torch.zeros(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_the_device_is_not_content() -> None:
    assert fingerprint(torch.arange(3.0)) == fingerprint(torch.arange(3.0, device="cuda"))


def test_a_data_set_is_its_images_and_labels() -> None:
    images = torch.arange(16, dtype=torch.uint8).view(4, 1, 2, 2)
    labels = torch.tensor([0, 1, 0, 1])
    base = fingerprint(ImageSet(images, labels))
    assert base == fingerprint(ImageSet(images.clone(), labels.clone(), name="another name"))
    different = [
        ImageSet(images.flip(0), labels),
        ImageSet(images, labels.flip(0)),
        ImageSet(images, labels.float()),
        ImageSet(images, labels).subset(torch.tensor([0, 1, 2])),
        ImageSet(images, labels).subset(torch.tensor([1, 0, 2, 3])),
    ]
    assert len({base, *map(fingerprint, different)}) == 6


def test_lazy_images_that_say_what_they_are_made_from_are_not_read() -> None:
    def read(index: int) -> torch.Tensor:
        raise AssertionError(f"image {index} was read")

    contents = [torch.tensor(each) for each in ([7, 8, 9], [7, 8, 9], [7, 8, 5], [7, 8, 9, 9])]
    one, same, *others = (
        fingerprint(ImageSet(LazyImages(read, (len(each), 1, 2, 2)), torch.zeros(len(each)), contents=each))
        for each in contents
    )
    assert one == same and len({one, *others}) == 3


def test_a_network_is_its_weights_and_buffers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    base = fingerprint(network)
    assert base == fingerprint(network.eval().to(memory_format=torch.channels_last).requires_grad_(False))
    network[1].running_mean[0] += 1
    moved = fingerprint(network)
    network[0].bias.data[1] += 1
    assert len({base, moved, fingerprint(network)}) == 3


def test_two_generators_of_equal_weights_that_read_labels_differently_differ() -> None:
    """The label range is no weight, but the same label then makes another image."""
    settings = {
        "resolution": 8,
        "image_channels": 1,
        "widths": (8, 8),
        "latent_dim": 4,
        "label_dim": 8,
        "label_input": "fourier",
    }
    one, other = (SNGANGenerator(label_range=ends, **settings) for ends in ((0.0, 1.0), (0.0, 90.0)))
    other.load_state_dict(one.state_dict())
    label = torch.tensor([0.5])
    latents = torch.ones(1, 4)
    assert not torch.equal(one.eval().sample(label, latents), other.eval().sample(label, latents))
    assert fingerprint(one) != fingerprint(other)


def test_stage_files_are_json_that_a_person_can_read(tmp_path: Path, accelerator: Accelerator) -> None:
    stage = Stage(tmp_path / "stage", INPUTS)
    stage.begin(accelerator)
    stage.finish(accelerator, seconds=1.5)
    record = json.loads((tmp_path / "stage" / STAGE_FILE).read_text())
    inputs = json.loads(json.dumps(INPUTS))
    assert record == {"format": FORMAT, "finished": True, "inputs": inputs, "results": {"seconds": 1.5}, "files": {}}
