"""Every source yields uint8 images and the labels the task asks for, or one sentence that says what is wrong."""

from __future__ import annotations

import hashlib
import io
import pickle
import re

import h5py
import numpy
import pytest
import torch
from PIL import Image

from gankd.data.config import DataConfig
from gankd.data.readers import READERS, read_data
from gankd.data.readers import read as read_source
from gankd.data.readers.known_sets import rotate
from gankd.data.sets import ImageSet, LazyImages


def picture(value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A uniform image, so that no resizing changes it; PNG keeps it exactly."""
    return Image.new("L", size, value).convert(mode)


def save(path, value: int, **form) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value, **form).save(path)


def values(dataset: ImageSet) -> list[int]:
    return dataset.images[torch.arange(len(dataset))][:, 0, 0, 0].tolist()


def read(name: str, kind: str, **fields) -> tuple[ImageSet, ImageSet | None]:
    return read_source(DataConfig(name=name, **fields), kind)


def refused(name: str, kind: str, message: str, **fields) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_data(DataConfig(name=name, **fields), kind=kind, seed=0)


class TestDigits:
    def test_the_split_is_fixed_and_stratified(self):
        first, second = (
            read_data(DataConfig(name="digits", labelled=100, validation=97), kind="classification", seed=seed)
            for seed in (0, 1)
        )
        assert torch.equal(first.test.images, second.test.images) and len(first.test) == 500
        assert not torch.equal(first.train.images, second.train.images)
        assert torch.bincount(first.train.labels).tolist() == [10] * 10
        assert len(first.validation) == 97
        assert torch.bincount(first.test.labels).min() >= 48
        assert first.train.image_shape == (1, 16, 16)
        assert first.train.class_names == tuple("0123456789")

    def test_the_source_is_used_whole_and_the_right_way_up(self):
        from sklearn.datasets import load_digits

        train, test = read("digits", "classification", image_size=8)
        counts = torch.cat([train.images, test.images]).flatten(1).double() * 16 / 255
        source = torch.from_numpy(load_digits().images).flatten(1)
        assert torch.equal(counts.round().unique(dim=0), source.unique(dim=0))
        upsampled, _ = read("digits", "classification")
        seven = upsampled.images[upsampled.labels == 7].float().mean(0)[0]  # a bar above, a stem below on the left
        assert seven[:5].sum() > 1.2 * seven[-5:].sum()
        assert seven[-4:, :8].sum() > 1.2 * seven[-4:, 8:].sum()

    def test_channels_and_size_are_as_asked(self):
        train, _ = read("digits", "classification", image_size=12, channels=3)
        assert train.image_shape == (3, 12, 12)
        assert torch.equal(train.images[:, 0], train.images[:, 2])


class TestRotatedDigits:
    def test_a_positive_angle_turns_anticlockwise(self):
        spot = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
        spot[0, 0, 1, 4] = 255  # above the centre
        left = rotate(spot, torch.tensor([90.0]))
        assert left[0, 0, 4, 1] == 255 and left.sum() == 255

    @pytest.mark.parametrize("angle", [-47.0, 20.0, 60.0])
    def test_it_turns_as_pil_does(self, angle):
        train, _ = read("digits", "classification")
        digit = torch.nn.functional.pad(train.images[0, 0], [6] * 4)  # the two treat ink on the border differently
        ours = rotate(digit[None, None], torch.tensor([angle]))[0, 0].numpy()
        theirs = numpy.array(Image.fromarray(digit.numpy()).rotate(angle, resample=Image.Resampling.BILINEAR))
        assert theirs.max() > 200 and abs(ours.astype(int) - theirs.astype(int)).max() <= 2

    def test_the_label_is_the_angle_by_which_the_digit_was_turned(self):
        """Of all angles, turning back by the label brings a digit closest to its upright original."""
        upright, _ = read("digits", "classification")
        turned, test = read("rotated_digits", "regression")
        assert len(turned) == len(upright) and len(test) == 500
        assert turned.labels.dtype == torch.float32 and turned.class_names is None
        assert turned.labels.min() < -55 and turned.labels.max() > 55 and turned.labels.abs().max() <= 60
        chosen = turned.labels.abs() > 20
        distances = [
            (rotate(turned.images[chosen], sign * turned.labels[chosen]).float() - upright.images[chosen]).abs().mean()
            for sign in (-1, 0, 1)
        ]
        assert distances[0] < 0.5 * min(distances[1:])

    def test_every_reading_gives_the_same_data(self):
        first, second = (read("rotated_digits", "regression")[0] for _ in range(2))
        assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


class TestCifar:
    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_a_missing_folder_names_both_ways_out(self, tmp_path, name):
        refused(name, "classification", "set data.download: true", root=tmp_path)
        refused(name, "classification", "data.root", root=None)

    def test_it_reads_what_torchvision_reads(self, tmp_path, monkeypatch):
        from torchvision.datasets import CIFAR10

        def write(file_name: str, content: dict) -> list[str]:
            path = tmp_path / CIFAR10.base_folder / file_name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pickle.dumps(content))
            return [file_name, hashlib.md5(path.read_bytes()).hexdigest()]

        planes = numpy.repeat(numpy.array([[10, 20, 30], [40, 50, 60]], dtype=numpy.uint8), 1024, axis=1)
        train = write("data_batch_1", {"data": planes, "labels": [1, 0]})
        test = write("test_batch", {"data": planes[:1], "labels": [1]})
        meta = write("batches.meta", {"label_names": ["cat", "dog"]})
        monkeypatch.setattr(CIFAR10, "train_list", [train])  # the files of the real set have other checksums
        monkeypatch.setattr(CIFAR10, "test_list", [test])
        monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})

        train, test = read("cifar10", "classification", root=tmp_path)
        assert train.image_shape == (3, 32, 32) and len(train) == 2 and len(test) == 1
        assert train.images[:, :, 5, 7].tolist() == [[10, 20, 30], [40, 50, 60]]
        assert train.labels.tolist() == [1, 0] and train.class_names == ("cat", "dog")


class TestImageFolder:
    def test_the_tree_with_a_test_split(self, tmp_path):
        for split, offset in (("train", 0), ("val", 100)):
            for class_id, name in enumerate(("ant", "bee")):
                for number in range(3):
                    save(tmp_path / split / name / f"{number}.png", offset + 10 * class_id + number)
        train, test = read("image_folder", "classification", root=tmp_path)
        assert train.class_names == test.class_names == ("ant", "bee")
        assert values(train) == [0, 1, 2, 10, 11, 12] and train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert values(test) == [100, 101, 102, 110, 111, 112]

    def test_class_folders_alone_leave_the_test_split_to_be_cut(self, tmp_path):
        for number in range(10):
            save(tmp_path / "ant" / f"{number}.png", number)
            save(tmp_path / "bee" / f"{number}.png", 100 + number)
        assert read("image_folder", "classification", root=tmp_path)[1] is None
        config = DataConfig(name="image_folder", root=tmp_path, test=4, validation=0.25)
        splits, others = (read_data(config, kind="classification", seed=seed) for seed in (0, 1))
        parts = [splits.train, splits.validation, splits.test]
        assert [len(part) for part in parts] == [12, 4, 4]
        assert sorted(sum((values(part) for part in parts), [])) == [*range(10), *range(100, 110)]
        assert values(splits.test) == values(others.test) and values(splits.validation) != values(others.validation)

    def test_images_are_resized_and_modes_converted(self, tmp_path):
        for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
            save(tmp_path / "ant" / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}", 77, size=(9, 5), mode=mode)
        train, _ = read("image_folder", "classification", root=tmp_path, image_size=6, channels=3)
        assert train.images.shape == (5, 3, 6, 6) and (train.images == 77).all()
        train, _ = read("image_folder", "classification", root=tmp_path, image_size=6, channels=1)
        assert train.images.shape == (5, 1, 6, 6) and (train.images == 77).all()

    def test_open_settings_follow_the_first_image_and_lose_nothing_silently(self, tmp_path):
        save(tmp_path / "ant" / "0.png", 1, mode="L", size=(9, 5))
        save(tmp_path / "ant" / "1.png", 2, mode="L", size=(9, 5))
        assert read("image_folder", "classification", root=tmp_path)[0].images.shape == (2, 1, 5, 9)
        save(tmp_path / "ant" / "2.png", 3, mode="L", size=(9, 6))
        refused("image_folder", "classification", "2.png has 9x6 pixels", root=tmp_path)
        save(tmp_path / "ant" / "2.png", 3, mode="RGB", size=(9, 5))
        refused("image_folder", "classification", "2.png has colour", root=tmp_path)
        Image.fromarray(numpy.full((5, 9), 40000, dtype=numpy.uint16)).save(tmp_path / "ant" / "2.png")
        assert values(read("image_folder", "classification", root=tmp_path)[0]) == [1, 2, 156]  # 16 bits scaled to 8

    def test_a_set_beyond_the_budget_is_read_when_asked_for(self, tmp_path):
        for number in range(6):
            save(tmp_path / "ant" / f"{number}.png", number)
        whole, _ = read("image_folder", "classification", root=tmp_path)
        lazy, _ = read("image_folder", "classification", root=tmp_path, memory_budget=0)
        assert isinstance(lazy.images, LazyImages) and isinstance(whole.images, torch.Tensor)
        assert torch.equal(lazy.in_memory().images, whole.images)
        assert values(lazy.subset(torch.tensor([4, 1]))) == [4, 1]

    def test_bad_trees_are_named(self, tmp_path):
        refused("image_folder", "classification", "nowhere does not exist", root=tmp_path / "nowhere")
        refused("image_folder", "classification", "no class folders", root=tmp_path)
        save(tmp_path / "train" / "ant" / "0.png", 0)
        (tmp_path / "train" / "bee").mkdir()
        refused("image_folder", "classification", f"{tmp_path / 'train' / 'bee'} has no images", root=tmp_path)
        save(tmp_path / "train" / "bee" / "0.png", 0)
        (tmp_path / "test").mkdir()
        refused("image_folder", "classification", f"{tmp_path / 'test'} has no images", root=tmp_path)
        save(tmp_path / "test" / "bees" / "0.png", 0)
        refused("image_folder", "classification", "did you mean 'bee'?", root=tmp_path)

    @pytest.mark.parametrize("budget", [0, 2048])
    def test_an_image_that_does_not_decode_is_named(self, tmp_path, budget):
        save(tmp_path / "ant" / "0.png", 0)
        save(tmp_path / "ant" / "1.png", 0)
        whole = (tmp_path / "ant" / "1.png").read_bytes()
        (tmp_path / "ant" / "1.png").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"1\.png does not decode .*: repair or remove it"):
            read("image_folder", "classification", root=tmp_path, memory_budget=budget)[0].in_memory()


class TestImagenet100:
    def test_the_list_chooses_and_orders_the_classes(self, tmp_path):
        for value, name in enumerate(("n01", "n02", "n03")):
            save(tmp_path / "train" / name / "a.JPEG", 10 * value)
            save(tmp_path / "val" / name / "a.JPEG", 10 * value + 1)
        (tmp_path / "classes.txt").write_text("n03 great auk\nn01\n")
        train, test = read("imagenet100", "classification", root=tmp_path)
        assert train.class_names == ("great auk", "n01") and train.labels.tolist() == [0, 1]
        assert values(train) == [20, 0] and values(test) == [21, 1]

    def test_a_listed_class_without_a_folder_is_named(self, tmp_path):
        save(tmp_path / "train" / "n01" / "a.png", 0)
        refused("imagenet100", "classification", "no classes.txt", root=tmp_path)
        (tmp_path / "imagenet100.txt").write_text("n01\nn04 tench\n")
        refused("imagenet100", "classification", "class 'n04' has no folder", root=tmp_path)
        (tmp_path / "imagenet100.txt").write_text("n01\nn01\n")
        refused("imagenet100", "classification", "a class twice", root=tmp_path)


class TestScalarSets:
    def test_utkface_takes_the_age_from_the_name(self, tmp_path):
        save(tmp_path / "part1" / "26_0_1_20170116.jpg.chip.jpg", 26)
        save(tmp_path / "part2" / "101_1_2017.jpg", 101)
        (tmp_path / "readme.txt").write_text("not an image")
        train, test = read("utkface", "regression", root=tmp_path)
        assert test is None and train.labels.dtype == torch.float32
        assert train.labels.tolist() == [26, 101] and train.class_names is None
        save(tmp_path / "part2" / "face.jpg", 0)
        refused("utkface", "regression", "1 of 3 images", root=tmp_path)
        refused("utkface", "regression", f"{tmp_path / 'part2' / 'face.jpg'} first", root=tmp_path)

    @pytest.mark.parametrize("name", ["utkface", "steering_angle"])
    def test_both_hdf5_layouts(self, tmp_path, name):
        images = numpy.arange(4, dtype=numpy.uint8)[:, None, None, None].repeat(3, 1).repeat(8, 2).repeat(8, 3)
        with h5py.File(tmp_path / "split.h5", "w") as file:
            file["images_train"], file["labels_train"] = images[:3], numpy.array([1, 20, -30])
            file["images_test"], file["labels_test"] = images[3:], numpy.array([4.5])
        train, test = read(name, "regression", root=tmp_path / "split.h5")
        assert values(train) == [0, 1, 2] and train.labels.tolist() == [1, 20, -30]
        assert values(test) == [3] and test.labels.tolist() == [4.5] and test.image_shape == (3, 8, 8)
        with h5py.File(tmp_path / "whole.h5", "w") as file:
            file["images"], file["labels"], file["races"] = images, numpy.arange(4.0), numpy.arange(4)
        train, test = read(name, "regression", root=tmp_path / "whole.h5", image_size=4)
        assert test is None and values(train) == train.labels.tolist() == [0, 1, 2, 3]
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["image"] = images
        refused(name, "regression", "no array 'images'; did you mean 'image'?", root=tmp_path / "other.h5")
        (tmp_path / "broken.h5").write_bytes(b"no HDF5")
        refused(name, "regression", "broken.h5 is not a readable HDF5 file", root=tmp_path / "broken.h5")

    @pytest.mark.parametrize(("folder", "date"), [("", ""), ("data", ",2018-07-01 17:09:44:912")])
    def test_steering_angles_in_blocks_of_neighbouring_frames(self, tmp_path, folder, date):
        for number in range(70):
            save(tmp_path / folder / f"{number}.jpg", number)
        lines = [f"{number}.jpg {number - 35.5}{date}\n" for number in range(70)]
        (tmp_path / "data.txt").write_text("".join(lines))
        train, test = read("steering_angle", "regression", root=tmp_path)
        assert test is None and train.labels.tolist() == [number - 35.5 for number in range(70)]
        assert torch.bincount(train.groups).tolist() == [32, 32, 6]

    def test_bad_lines_of_a_drive_are_named(self, tmp_path):
        refused("steering_angle", "regression", "has no data.txt", root=tmp_path)
        save(tmp_path / "0.jpg", 0)
        (tmp_path / "data.txt").write_text("0.jpg 1.5\n1.jpg 2\n")
        refused("steering_angle", "regression", "data.txt, line 2: ", root=tmp_path)
        (tmp_path / "data.txt").write_text("0.jpg left\n")
        refused("steering_angle", "regression", "line 1: '0.jpg left' is not 'FILE ANGLE'", root=tmp_path)


class TestCsv:
    @pytest.fixture
    def table(self, tmp_path):
        for number in range(6):
            save(tmp_path / "images" / f"{number}.png", number)

        def write(header: str, *rows: str):
            lines = [header, *(f"images/{number}.png,{row}" for number, row in enumerate(rows))]
            (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
            return tmp_path

        return write

    def test_the_task_decides_what_a_label_is(self, table):
        root = table("path,label", "10", "9", "10", "9", "9", "10")
        train, test = read("csv", "classification", root=root)
        assert test is None and train.class_names == ("9", "10") and train.labels.tolist() == [1, 0, 1, 0, 0, 1]
        train, _ = read("csv", "regression", root=root / "labels.csv")
        assert train.class_names is None and train.labels.tolist() == [10, 9, 10, 9, 9, 10]

    def test_splits_groups_and_the_label_column(self, table):
        rows = ["fox,train,b", "ant,test,a", "fox,validation,b", "ant,train,a", "ant,,c", "fox,test,a"]
        train, test = read("csv", "classification", root=table("path,animal,split,group", *rows), label="animal")
        assert values(train) == [0, 2, 3, 4] and values(test) == [1, 5]
        assert train.class_names == ("ant", "fox") and train.labels.tolist() == [1, 1, 0, 0]
        assert train.groups.tolist() == [1, 1, 0, 2] and test.groups.tolist() == [0, 0]

    def test_bad_tables_are_named_with_the_row(self, table):
        refused("csv", "classification", "no column 'label'; did you mean 'labels'?", root=table("path,labels", "1"))
        refused("csv", "classification", "data.label", root=table("path,label", "1"), label="age")
        missing = table("path,label", "1", "2", "3", "4", "5", "6", "7")
        refused("csv", "classification", f"row 8: {missing / 'images' / '6.png'} does not exist", root=missing)
        refused("csv", "regression", "row 3: label 'old' is no finite number", root=table("path,label", "1", "old"))
        refused("csv", "regression", "row 2: label 'nan' is no finite number", root=table("path,label", "nan"))
        refused("csv", "classification", "row 2: the label is empty", root=table("path,label", ""))
        refused("csv", "classification", "row 2: split 'dev'", root=table("path,label,split", "1,dev"))
        refused("csv", "classification", "no rows to train on", root=table("path,label,split", "1,test"))

    def test_a_class_that_only_the_test_rows_have_is_named(self, table):
        rows = ["ant,train", "ant,train", "bee,train", "bee,train", "ant,test", "fox,test"]
        refused("csv", "classification", "class 'fox' has no training sample", root=table("path,label,split", *rows))


class TestNpz:
    grey = numpy.arange(8, dtype=numpy.uint8)[:, None, None].repeat(6, 1).repeat(5, 2)  # [8, 6, 5]

    def test_every_layout_of_the_images(self, tmp_path):
        colour = self.grey[..., None].repeat(3, 3)
        grey_layouts = [self.grey, self.grey[:, None], self.grey[..., None]]
        for images in (*grey_layouts, colour, colour.transpose(0, 3, 1, 2)):
            numpy.savez(tmp_path / "data.npz", images=images, labels=numpy.arange(8.0) / 2)
            train, test = read("npz", "regression", root=tmp_path / "data.npz")
            assert test is None and train.image_shape == (3 if images.size == colour.size else 1, 6, 5)
            assert values(train) == list(range(8)) and train.labels.tolist() == [number / 2 for number in range(8)]

    def test_own_test_split_other_labels_and_class_names(self, tmp_path):
        numpy.savez(
            tmp_path / "data.npz", train_images=self.grey[:6], test_images=self.grey[6:],
            train_labels=numpy.array(list("baabab")), test_labels=numpy.array(list("ab")),
            train_age=numpy.arange(6), test_age=numpy.arange(2),
        )  # fmt: skip
        train, test = read("npz", "classification", root=tmp_path / "data.npz", channels=3, image_size=4)
        assert train.class_names == ("a", "b") and train.labels.tolist() == [1, 0, 0, 1, 0, 1]
        assert values(test) == [6, 7] and test.labels.tolist() == [0, 1] and test.image_shape == (3, 4, 4)
        train, _ = read("npz", "regression", root=tmp_path / "data.npz", label="age")
        assert train.labels.dtype == torch.float32 and train.labels.tolist() == [0, 1, 2, 3, 4, 5]
        refused("npz", "regression", "its labels are words", root=tmp_path / "data.npz")
        refused("npz", "regression", "did you mean 'train_age'?", root=tmp_path / "data.npz", label="ages")

    @pytest.mark.parametrize(
        ("arrays", "kind", "message"),
        [
            ({"images": grey.astype(numpy.float32), "labels": numpy.zeros(8)}, "regression", "expected uint8"),
            ({"images": grey[0], "labels": numpy.zeros(8)}, "regression", "expected uint8"),
            ({"images": grey, "labels": numpy.zeros(7)}, "regression", "8 images but 7 labels"),
            ({"images": grey, "labels": numpy.zeros((8, 2))}, "regression", "expected one an image"),
            ({"images": grey, "labels": numpy.arange(8) / 2}, "classification", "its labels are fractions"),
            ({"images": grey, "labels": numpy.full(8, numpy.inf)}, "regression", "no finite number"),
            ({"images": grey, "labels": numpy.arange(8), "classes": ["a", "b"]}, "classification", "2 classes"),
            ({"images": grey, "labels": numpy.array([{}] * 8)}, "regression", "'labels' in"),
            ({"pictures": grey}, "regression", "no array 'images'"),
        ],
    )
    def test_bad_arrays_are_named(self, tmp_path, arrays, kind, message):
        numpy.savez(tmp_path / "data.npz", **arrays)
        refused("npz", kind, message, root=tmp_path / "data.npz")

    def test_a_file_of_another_kind_is_named(self, tmp_path):
        numpy.save(tmp_path / "data.npy", self.grey)
        refused("npz", "regression", "data.npy is not an .npz file", root=tmp_path / "data.npy")
        refused("npz", "regression", f"{tmp_path} is not an .npz file", root=tmp_path)

    def test_a_reduction_averages(self, tmp_path):
        checkerboard = (numpy.indices((2, 16, 16)).sum(0) % 2 * 200).astype(numpy.uint8)
        numpy.savez(tmp_path / "data.npz", images=checkerboard, labels=numpy.zeros(2))
        train, _ = read("npz", "regression", root=tmp_path / "data.npz", image_size=4)
        assert (train.images.int() - 100).abs().max() <= 1


class TestImagePack:
    def pack(self, path, values, split="train", **arrays):
        files = []
        for value in values:
            buffer = io.BytesIO()
            picture(value).save(buffer, "PNG")
            files.append(buffer.getvalue())
        return {
            f"{split}_jpeg_bytes": numpy.frombuffer(b"".join(files), dtype=numpy.uint8),
            f"{split}_offsets": numpy.cumsum([0, *map(len, files)]),
            **{f"{split}_{name}": array for name, array in arrays.items()},
        }

    def test_classes_labels_and_an_own_test_split(self, tmp_path):
        path = tmp_path / "pack.npz"
        arrays = self.pack(path, range(5), labels=numpy.array([2, 0, 1, 1, 0]), weight=numpy.arange(5) / 4)
        arrays |= self.pack(path, [9, 8], "test", labels=numpy.array([1, 2]), weight=numpy.array([0.5, 0.25]))
        numpy.savez(path, classes=numpy.array(["ant", "bee", "fox"]), **arrays)
        train, test = read("image_pack", "classification", root=path)
        assert values(train) == [0, 1, 2, 3, 4] and train.labels.tolist() == [2, 0, 1, 1, 0]
        assert values(test) == [9, 8] and test.labels.tolist() == [1, 2]
        assert train.class_names == ("ant", "bee", "fox") and train.groups is None
        train, _ = read("image_pack", "regression", root=path, label="weight", memory_budget=0)
        assert train.labels.tolist() == [0, 0.25, 0.5, 0.75, 1] and values(train) == [0, 1, 2, 3, 4]
        refused("image_pack", "regression", "it names classes", root=path)

    def test_crops_of_one_source_and_neighbouring_frames_are_groups(self, tmp_path):
        path, scalars = tmp_path / "pack.npz", numpy.arange(4.0)
        numpy.savez(path, **self.pack(path, range(4), labels=scalars, source=numpy.array([7, 7, 3, 3])))
        train, test = read("image_pack", "regression", root=path)
        assert test is None and train.groups.tolist() == [7, 7, 3, 3]
        numpy.savez(path, **self.pack(path, range(4), labels=scalars, frame=numpy.array([30, 31, 32, 95])))
        assert read("image_pack", "regression", root=path)[0].groups.tolist() == [0, 0, 1, 2]

    def test_an_image_that_does_not_decode_is_numbered(self, tmp_path):
        path = tmp_path / "pack.npz"
        arrays = self.pack(path, range(3), labels=numpy.zeros(3))
        arrays["train_jpeg_bytes"] = arrays["train_jpeg_bytes"].copy()
        arrays["train_jpeg_bytes"][arrays["train_offsets"][1] :][:8] = 0
        numpy.savez(path, **arrays)
        refused("image_pack", "regression", f"{path} train, image 1 does not decode", root=path)


class TestLoadData:
    def test_scalars_outside_the_range_are_dropped_everywhere(self):
        config = DataConfig(name="rotated_digits", label_range=(-10, 20), labelled=50, validation=60)
        splits = read_data(config, kind="regression", seed=0)
        whole = read_data(config.replace(label_range=None), kind="regression", seed=0)
        for part in (splits.train, splits.validation, splits.test):
            assert part.labels.min() >= -10 and part.labels.max() <= 20
        inside = (whole.test.labels >= -10) & (whole.test.labels <= 20)
        assert torch.equal(splits.test.labels, whole.test.labels[inside])  # the same digits, fewer of them
        assert len(splits.train) == 50 and len(splits.validation) == 60

    def test_the_ends_of_the_range_belong_to_it(self, tmp_path):
        labels, images = numpy.array([0.0, 0.1, 0.2, 0.3, 0.4]), numpy.zeros((5, 4, 4), dtype=numpy.uint8)
        numpy.savez(
            tmp_path / "data.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels
        )
        config = DataConfig(name="npz", root=tmp_path / "data.npz", label_range=(0.1, 0.3), validation=1)
        splits = read_data(config, kind="regression", seed=0)
        assert torch.equal(splits.test.labels, torch.tensor([0.1, 0.2, 0.3]))
        assert len(splits.train) + len(splits.validation) == 3

    def test_a_larger_labelled_set_leaves_validation_alone(self):
        few, many = (
            read_data(DataConfig(name="digits", labelled=number), kind="classification", seed=5) for number in (20, 200)
        )
        assert torch.equal(few.validation.images, many.validation.images)

    @pytest.mark.parametrize("name", sorted(READERS))
    def test_settings_that_do_not_fit_the_source_are_refused(self, name):
        own_kind = {"rotated_digits": "regression", "utkface": "regression", "steering_angle": "regression"}
        kind = own_kind.get(name, "classification")
        other = "classification" if kind == "regression" else "regression"
        if name not in ("csv", "npz", "image_pack"):
            refused(name, other, f"does not fit data.name: {name}")
            refused(name, kind, f"{name} has no setting 'label' (npz, image_pack, csv have)", label="weight")
        if name not in ("digits", "rotated_digits"):
            refused(name, kind, "data.root: ")
        if not name.startswith("cifar"):
            refused(name, kind, f"{name} has no setting 'download'", download=True)
        refused(name, "classification", "data.label_range: ", label_range=(0, 1))

    def test_an_unknown_source_names_the_nearest(self):
        refused("digit", "classification", "unknown data set 'digit'; did you mean 'digits'?")

    def test_a_range_that_holds_nothing_says_where_the_labels_lie(self):
        message = "no train label of rotated_digits lies in [80.0, 90.0]; they lie in [-59.9"
        refused("rotated_digits", "regression", message, label_range=(80, 90))

    def test_splits_of_two_shapes_are_refused(self, tmp_path):
        save(tmp_path / "train" / "ant" / "0.png", 0)
        save(tmp_path / "test" / "ant" / "0.png", 0, size=(9, 9))
        refused("image_folder", "classification", "(3, 8, 8) to train and (3, 9, 9) to test", root=tmp_path)
