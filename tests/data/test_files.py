"""Image files, tables and arrays as other programs leave them: read as they are meant, or refused by name."""

from __future__ import annotations

import io
import os
import re

import h5py
import numpy
import pytest
import torch
from PIL import Image, ImageCms

from gankd.data.config import DataConfig
from gankd.data.loader import BatchSource
from gankd.data.readers import read, read_data
from gankd.data.readers.images import find_images
from generators.images import as_uint8, channel_statistics
from tests.data.test_readers import picture, refused, save, values


def dataset(name: str, kind: str, **fields):
    return read(DataConfig(name=name, **fields), kind)[0]


# --- F16: one reader of images ----------------------------------------------------------------------------------------


def patches(mode: str) -> Image.Image:
    """Left half (200, 40, 90), right half (20, 160, 60), in `mode`."""
    image = Image.new("RGB", (8, 4), (200, 40, 90))
    image.paste((20, 160, 60), (4, 0, 8, 4))
    if mode == "LAB":
        profiles = [ImageCms.createProfile(space) for space in ("sRGB", "LAB")]
        return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    return image.quantize(8) if mode in ("P", "PA") and mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "P", "HSV", "LAB", "CMYK", "YCbCr", "RGBA", "RGBX"])
def test_F16_colours_of_every_mode_are_seen_as_they_are(mode) -> None:
    pixels = as_uint8(patches(mode)).int()
    expected = torch.tensor([[200, 40, 90], [20, 160, 60]]).T
    assert pixels.shape == (3, 4, 8) and (pixels[:, 0, [0, 7]] - expected).abs().max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_F16_grey_stays_grey(mode) -> None:
    pixels = as_uint8(Image.new("L", (4, 4), 255).convert(mode))
    assert pixels.shape == (1, 4, 4) and (pixels == 255).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "F"])
def test_F16_more_than_8_bits_are_scaled(mode, tmp_path) -> None:
    if mode == "F":
        image = Image.fromarray(numpy.full((4, 4), 0.5, dtype=numpy.float32))
        assert (as_uint8(image) == 128).all()
        with pytest.raises(ValueError, match="values in"):
            as_uint8(Image.fromarray(numpy.full((4, 4), 77.0, dtype=numpy.float32)))
        return
    array = numpy.full((4, 4), 40000, dtype=numpy.uint16)
    array[0, 0] = 65535
    image = Image.frombytes(mode, (4, 4), array.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    assert as_uint8(image)[0, 0].tolist() == [255, 156, 156, 156]
    Image.fromarray(array).save(tmp_path / "0.png")
    (tmp_path / "ant").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "ant" / "0.png")
    assert dataset("image_folder", "classification", root=tmp_path).images[0, 0, 0].tolist() == [255, 156, 156, 156]
    with pytest.raises(ValueError, match="32-bit integers"):
        as_uint8(Image.new("I", (4, 4), 70000))


def test_F16_what_is_transparent_lies_on_white() -> None:
    hidden = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    hidden.putpixel((1, 0), (13, 99, 5, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([200, 0, 0, 13, 99, 5])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    for image in (hidden, palette, hidden.convert("RGBa"), palette.convert("PA")):
        assert as_uint8(image)[:, 0].T.tolist() == [[200, 0, 0], [255, 255, 255]]
    grey = Image.new("LA", (2, 1), (70, 255))
    grey.putpixel((1, 0), (3, 0))
    assert as_uint8(grey)[0, 0].tolist() == [70, 255]


@pytest.mark.parametrize("is_file", [False, True])
def test_F16_images_are_turned_as_their_exif_tag_says(is_file, tmp_path) -> None:
    image = Image.new("RGB", (6, 4), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 6, 1))  # a white line on top, as it is stored
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top is to the right
    (tmp_path / "ant").mkdir()
    image.save(tmp_path / "ant" / "0.png", exif=exif)
    if is_file:
        pixels = dataset("image_folder", "classification", root=tmp_path).images[0]
    else:
        pixels = as_uint8(Image.open(tmp_path / "ant" / "0.png"))
    assert pixels.shape == (3, 6, 4) and (pixels[:, :, -1] == 255).all() and (pixels[:, :, :-1] == 0).all()


# --- F17: which files are images --------------------------------------------------------------------------------------


def test_F17_linked_folders_and_all_suffixes_are_read_and_the_others_counted(tmp_path) -> None:
    for number, suffix in enumerate(("png", "jpg", "JPEG", "jfif", "tga", "webp", "tiff", "bmp")):
        save(tmp_path / "elsewhere" / f"{number}.png", number)
        Image.new("RGB", (8, 8)).save(
            tmp_path / "elsewhere" / f"{number}.{suffix}", format="JPEG" if suffix in ("jfif", "JPEG") else None
        )
    root = tmp_path / "root" / "ant"
    root.mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(tmp_path / "root", root / "loop")
    (root / "notes.txt").write_text("no image")
    (root / "photo.heic").write_bytes(b"")
    (root / ".hidden.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"15 images are read, 2 other files are not \(1 of .heic, 1 of .txt\)"):
        files = find_images(tmp_path / "root")
    assert len(files) == 15 and {file.suffix.lower() for file in files} >= {".jfif", ".tga", ".webp"}


# --- F7: classes of folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image_folder", "imagenet100"])
def test_F7_a_class_that_the_test_split_lacks_leaves_the_others_their_ids(name, tmp_path) -> None:
    for number, animal in enumerate(("ant", "bee", "cat")):
        save(tmp_path / "train" / animal / "0.png", number)
        if animal != "bee":
            save(tmp_path / "test" / animal / "0.png", number)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    train, test = read(DataConfig(name=name, root=tmp_path), "classification")
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [0, 2] == values(test)
    assert train.class_names == test.class_names == ("ant", "bee", "cat")


def test_F7_folders_of_numbers_are_in_their_order(tmp_path) -> None:
    for number in (0, 2, 10, 9):
        save(tmp_path / str(number) / "0.png", number)
    found = dataset("image_folder", "classification", root=tmp_path)
    assert found.class_names == ("0", "2", "9", "10") and values(found) == [0, 2, 9, 10]


# --- F28: identity of files -------------------------------------------------------------------------------------------


def test_F28_files_are_known_by_name_size_and_time_whatever_the_budget(tmp_path) -> None:
    for number in range(4):
        save(tmp_path / "ant" / f"{number}.png", number)

    def found(budget: int, **fields) -> str:
        return dataset("image_folder", "classification", root=tmp_path, memory_budget=budget, **fields).fingerprint()

    before = found(2048)
    assert found(0) == before and found(0, image_size=4) == found(2048, image_size=4) != before
    save(tmp_path / "ant" / "2.png", 99)
    os.utime(tmp_path / "ant" / "2.png", (1, 1))
    assert found(0) == found(2048) != before


def test_F11_what_reads_files_reaches_spawned_workers(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    files = []
    for number in range(4):
        save(tmp_path / "ant" / f"{number}.png", number)
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        files.append(buffer.getvalue())
    offsets, data = numpy.cumsum([0, *map(len, files)]), numpy.frombuffer(b"".join(files), dtype=numpy.uint8)
    numpy.savez(tmp_path / "p.npz", train_jpeg_bytes=data, train_offsets=offsets, train_labels=numpy.arange(4) % 2)
    for name, root in (("image_folder", tmp_path), ("image_pack", tmp_path / "p.npz")):
        lazy = dataset(name, "classification", root=root, memory_budget=0)
        assert BatchSource(lazy, batch_size=2, memory_budget=0, workers=1).workers == 1


# --- G: tables --------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    for number in range(6):
        save(tmp_path / "images" / f"{number}.png", number)

    def write(text: str, encoding: str = "utf-8"):
        (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
        return tmp_path

    return write


ROWS = ["images/0.png,größe", "images/1.png,ant", "images/2.png,größe"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_G_tables_in_other_encodings_and_separators(table, encoding, separator) -> None:
    text = "\r\n".join(["path,label", *ROWS]).replace(",", separator)
    assert dataset("csv", "classification", root=table(text, encoding)).class_names == ("ant", "größe")


def test_G_habits_of_spreadsheets(table) -> None:
    text = 'sep=;\n path ; label;group;;\n"images/0.png"; 1,5;a;;\nimages\\1.png;2;;;\n;;;;\nimages/2.png;"2";;;\n'
    found = dataset("csv", "regression", root=table(text))
    assert found.labels.tolist() == [1.5, 2, 2] and values(found) == [0, 1, 2]
    assert len(found.groups.unique()) == 3, "rows without a group are groups of their own"


def test_G_spaces_around_a_class_do_not_make_another(table) -> None:
    found = dataset("csv", "classification", root=table("path,label\nimages/0.png, cat\nimages/1.png,cat\n"))
    assert found.class_names == ("cat",) and found.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ('path,label\nimages/0.png,"cat\nimages/1.png,dog\n', "classification", "row 2: unexpected end of data"),
        (f'path,label\nimages/0.png,"{"x" * 140000}"\n', "classification", "row 2: field larger than field limit"),
        ("path,label\nimages/0.png,nan\n", "classification", "the label 'nan' is how programs write a missing value"),
        ("path,label\nimages/0.png,a,b\n", "classification", "row 2 has 3 cells, the header has 2"),
        ("path,label\nimages/0.png\n", "classification", "row 2: the label is empty"),
        ("path,label\n,cat\n", "classification", "does not exist"),
        ('path,label\nimages/0.png,"1,234"\n', "regression", "label '1,234' is no finite number"),
        ("path,label,label\nimages/0.png,1,2\n", "regression", "names a column twice"),
        ("", "classification", "no column 'path'"),
    ],
)  # fmt: skip
def test_G_bad_tables_are_one_sentence(table, text, kind, sentence) -> None:
    refused("csv", kind, sentence, root=table(text))


def test_G_a_file_that_is_no_text_is_named(table) -> None:
    root = table("")
    (root / "labels.csv").write_bytes(bytes(range(256)) * 4)
    refused("csv", "classification", "labels.csv", root=root)


# --- G: arrays --------------------------------------------------------------------------------------------------------

GREY = numpy.arange(8, dtype=numpy.uint8)[:, None, None].repeat(6, 1).repeat(5, 2)  # [8, 6, 5]


@pytest.mark.parametrize("images", [GREY / 255, (GREY / 255).astype(numpy.float32), GREY.astype(numpy.uint16) * 257])
def test_G_other_kinds_of_pixels(tmp_path, images) -> None:
    numpy.savez(tmp_path / "data.npz", images=images, labels=numpy.arange(8.0)[:, None])
    found = dataset("npz", "regression", root=tmp_path / "data.npz")
    assert values(found) == list(range(8)) == found.labels.tolist()


@pytest.mark.parametrize(
    ("arrays", "kind", "sentence"),
    [
        ({"images": GREY, "labels": numpy.eye(2)[numpy.arange(8) % 2]}, "classification", "labels.argmax(axis=1)"),
        ({"images": GREY, "labels": numpy.arange(8.0) + numpy.nan}, "classification", "has the label nan at 0"),
        ({"images": GREY, "labels": numpy.arange(8) * 1j}, "regression", "its labels are words|complex"),
        ({"images": GREY * numpy.nan, "labels": numpy.arange(8)}, "regression", "data.npz, images: images are float64"),
        ({"images": GREY.astype(int), "labels": numpy.arange(8)}, "regression", "data.npz, images: images are int64"),
        ({"images": numpy.float64(3), "labels": numpy.arange(8)}, "regression", "'images' in"),
        ({"images": GREY[..., None].repeat(4, 3), "labels": numpy.arange(8)}, "regression", "(8, 6, 5, 4)"),
        ({"images": GREY, "labels": 1e9 + numpy.arange(8)}, "regression", "cannot tell apart"),
    ],
)  # fmt: skip
def test_G_bad_arrays_are_one_sentence_with_file_and_array(tmp_path, arrays, kind, sentence) -> None:
    numpy.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError) as caught:
        read_data(DataConfig(name="npz", root=tmp_path / "data.npz"), kind=kind, seed=0)
    assert any(part in str(caught.value) for part in sentence.split("|")) and "data.npz" in str(caught.value)


def test_G_damaged_and_foreign_files_are_named(tmp_path) -> None:
    numpy.savez_compressed(tmp_path / "data.npz", images=GREY, labels=numpy.arange(8.0))
    whole = bytearray((tmp_path / "data.npz").read_bytes())
    whole[60:90] = bytes(30)
    (tmp_path / "data.npz").write_bytes(whole)
    refused("npz", "regression", "data.npz", root=tmp_path / "data.npz")
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    refused("npz", "regression", "cut.npz is not an .npz file", root=tmp_path / "cut.npz")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("images")
        file["labels"] = numpy.arange(8.0)
    refused("utkface", "regression", "'images' in", root=tmp_path / "group.h5")
    with h5py.File(tmp_path / "float.h5", "w") as file:
        file["images"], file["labels"] = GREY * 1.5, numpy.arange(8.0)
    refused("utkface", "regression", f"{tmp_path / 'float.h5'}, images: images are float64", root=tmp_path / "float.h5")


@pytest.mark.parametrize("offsets", [[0, 50, 20], [0, 10, 10**9], [-1, 5, 9], [0.5, 3, 9]])
def test_G_offsets_of_a_pack_that_cannot_be_are_named(tmp_path, offsets) -> None:
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    data = numpy.frombuffer(buffer.getvalue(), dtype=numpy.uint8)
    numpy.savez(tmp_path / "p.npz", train_jpeg_bytes=data, train_offsets=numpy.array(offsets), train_labels=[1, 2])
    refused("image_pack", "classification", "train_offsets in", root=tmp_path / "p.npz")


# --- F18, F24: said when data is loaded -------------------------------------------------------------------------------


def test_F24_one_class_or_one_test_image_is_said_at_once(tmp_path) -> None:
    for number in range(10):
        save(tmp_path / "ant" / f"{number}.png", number)
    refused("image_folder", "classification", "has one class, 'ant'; telling apart takes two", root=tmp_path)
    save(tmp_path / "bee" / "0.png", 1)
    save(tmp_path / "bee" / "1.png", 1)
    refused("image_folder", "classification", "data.test: 1 test image", root=tmp_path, test=1)


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1 << 70])
def test_F24_a_seed_that_cannot_be_is_refused(seed) -> None:
    with pytest.raises(ValueError, match=f"seed: {re.escape(str(seed))} is not between 0 and"):
        read_data(DataConfig(name="digits"), kind="classification", seed=seed)


@pytest.mark.parametrize("bounds", [(3, 1), (float("nan"), 1)])
def test_G_a_range_upside_down_is_refused(bounds) -> None:
    with pytest.raises(ValueError, match="the smallest label comes first"):
        DataConfig(name="rotated_digits", label_range=bounds)


def test_validation_0_keeps_all_of_train() -> None:
    splits = read_data(DataConfig(name="digits", validation=0), kind="classification", seed=0)
    assert len(splits.validation) == 0 and len(splits.train) == 1297
    assert splits.validation.image_shape == splits.train.image_shape
    with pytest.raises(ValueError, match="validation"):
        DataConfig.of({"name": "digits", "validation": -1})


# --- F32: channels that hardly vary -----------------------------------------------------------------------------------


def cells(seed: int, num_images: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Blue spots on black, their number the label; red and green hardly vary."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 12, (num_images,), generator=generator)
    images = torch.rand(num_images, 3, 16, 16, generator=generator) * torch.tensor([1.5, 1.5, 20]).view(1, 3, 1, 1)
    for image, count in zip(images, counts.tolist(), strict=True):
        for row, column in torch.randint(0, 14, (count, 2), generator=generator).tolist():
            image[2, row : row + 3, column : column + 3] = 220
    return images.to(torch.uint8), counts.float()


def recoded(images: torch.Tensor) -> torch.Tensor:
    """The same, once saved as JPEG of quality 95."""
    found = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=95)
        found.append(as_uint8(Image.open(buffer)))
    return torch.stack(found)


def test_F32_a_channel_that_hardly_varies_is_named_and_gets_a_floor_of_the_others_scale() -> None:
    images, _ = cells(0)
    with pytest.warns(UserWarning, match=r"hardly vary in channel red \(0.00\d+\), green \(0.00\d+\): .* of 0.\d"):
        _, std = channel_statistics(images)
    assert std[0] == std[1] == std[2] > 0.05
    ordinary = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(channel_statistics(ordinary)[1], (ordinary / 255).std((0, 2, 3), unbiased=False))


@pytest.mark.filterwarnings("ignore:images hardly vary")
def test_F32_a_trained_network_does_not_mind_images_that_were_saved_again() -> None:
    from gankd.models import SmallResNet
    from gankd.models.inputs import Normalize

    (images, labels), (test, test_labels) = cells(0), cells(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, normalize = SmallResNet(1, in_channels=3, widths=(8, 16)), Normalize.of(images)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        for _ in range(120):
            chosen = torch.randint(len(images), (50,))
            outputs = network(normalize(images[chosen] / 255)).flatten()
            optimizer.zero_grad()
            ((outputs - (labels[chosen] - 6) / 3) ** 2).mean().backward()
            optimizer.step()
    network.eval()

    def error(images: torch.Tensor) -> float:
        with torch.no_grad():
            return (3 * network(normalize(images / 255)).flatten() + 6 - test_labels).abs().mean().item()

    plain, again = error(test), error(recoded(test))
    assert plain < 1.5 and again < plain + 0.5, (plain, again)
