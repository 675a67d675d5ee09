"""Files that are always whole: who may read them, a disk that is full, and whose they are (F9, F21, F29)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import generators
from generators.checkpoints import images_fingerprint, replace_whole
from generators.networks.sngan import SNGANGenerator
from tests.commands import run

TENSOR = {"weight": torch.zeros(4)}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_f21_files_may_be_read_by_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with replace_whole(tmp_path / "store.safetensors") as temporary:
            save_file(TENSOR, temporary)  # writes with mode 600
        SNGANGenerator(8, 1, (8, 8), num_classes=2).save_pretrained(tmp_path / "generator")
    finally:
        os.umask(before)
    files = [tmp_path / "store.safetensors", *(tmp_path / "generator").iterdir()]
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}


FULL = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from generators.checkpoints import replace_whole
from generators.networks.sngan import SNGANGenerator

folder = Path(sys.argv[1])
large = {"weight": torch.zeros(1 << 20)}
generator = SNGANGenerator(8, 1, (256, 256), num_classes=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))  # what a full disk does, without one
write = {
    "torch": lambda path: torch.save(large, path),
    "safetensors": lambda path: save_file(large, path),
    "text": lambda path: path.write_text("x" * (1 << 20)),
}
try:
    if sys.argv[2] == "generator":
        generator.save_pretrained(folder)
    else:
        with replace_whole(folder / "file") as temporary:
            write[sys.argv[2]](temporary)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("writer", ["torch", "safetensors", "text", "generator"])
def test_f29_a_full_disk_is_one_sentence_and_leaves_nothing_behind(writer: str, tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(FULL)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_text("the last good one")
    (sentence,) = run(tmp_path / "full.py", folder, writer).splitlines()
    assert f"{folder}" in sentence and "could not be written: " in sentence and "Make room, or choose a dir" in sentence
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == "the last good one"


def test_f29_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match=r"runs/generator/a\.json could not be written: .*choose a directory"):
        with replace_whole(tmp_path / "runs" / "generator" / "a.json") as temporary:
            temporary.write_text("{}")


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("shapes differ"), FileNotFoundError(2, "No", "/other")])
def test_what_is_no_failed_write_stays_what_it_is(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, replace_whole(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error and list(tmp_path.iterdir()) == []


def test_a_fingerprint_is_of_the_contents_however_they_are_held() -> None:
    images = torch.randint(256, (1500, 1, 4, 4), dtype=torch.uint8)

    class Lazy:
        shape = images.shape

        def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
            return images[indices]

    assert images_fingerprint(images) == images_fingerprint(Lazy()) == images_fingerprint(images.clone())
    changed = images.clone()
    changed[1400, 0, 3, 3] ^= 1
    assert (
        len({images_fingerprint(images), images_fingerprint(changed), images_fingerprint(images.view(1500, 4, 1, 4))})
        == 3
    )

    class Known(Lazy):
        fingerprint = "as its reader says"

    assert images_fingerprint(Known()) == "as its reader says"


@pytest.mark.parametrize("change", ["images", "labels", "label_range", "seed", "settings"])
def test_f9_a_directory_is_continued_with_the_same_contents_only(change: str, tmp_path: Path) -> None:
    pixels = torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    run = {"images": pixels, "labels": torch.linspace(-30, 60, 20), "label_range": (-40.0, 60.0), "seed": 0}
    run |= {"widths": (8, 8), "discriminator_widths": (8,), "batch_size": 8, "steps": 2, "checkpoint_every": 1}
    run |= {"sigma": 3.0, "kappa": 6.0, "directory": tmp_path}
    generators.train(**run)
    logged: list[dict] = []
    generators.train(**run, log=logged.append)
    assert logged == [], "the same run has nothing left to do"
    other = {
        "images": {"images": pixels.flip(0)},
        "labels": {"labels": run["labels"].flip(0)},
        "label_range": {"label_range": (-40.0, 61.0)},
        "seed": {"seed": 1},
        "settings": {"cutout": 0.4},
    }[change]
    with pytest.raises(ValueError, match=r"checkpoint\.pt belongs to another run \(.*delete it, or choose another"):
        generators.train(**run | other)
