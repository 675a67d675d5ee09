"""What the user says about the data."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from generators.registry import NameIn, Registry
from generators.settings import Count, Positive, Settings, Weight, nearest

Kind = Literal["classification", "regression"]
"""What the task makes of a label: a class id, or a scalar in the user's units."""
READERS: Registry[Any] = Registry("data set")
"""The sources by name; see `readers`."""


def _add_own_settings(schema: dict[str, Any]) -> None:
    """Into the JSON schema: the settings that single sources add."""
    fields = schema["properties"]
    for reader in READERS:
        for key, field in READERS.options(reader).model_json_schema().get("properties", {}).items():
            takers = [name for name in READERS if key in READERS.options(name).model_fields]
            fields[key] = {**field, "description": f"A setting of {', '.join(takers)} alone."}
    schema["additionalProperties"] = False


class DataConfig(Settings):
    """Which images, from where, and how they are split. The test split is read once, for the report.

    A source may have settings of its own, which stand beside these: `data: {name: csv, label: age}`.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_add_own_settings)

    name: Annotated[str, NameIn(READERS)]
    """The source: digits, rotated_digits, cifar10, cifar100, image_folder, imagenet100, utkface, steering_angle, csv, npz,
    image_pack, or one that a plugin registers."""
    root: Path | None = None
    """The local folder or file that holds the data; the bundled digits need none."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Height and width in pixels; images of another size are resized. Null keeps the source's size."""
    channels: Literal[1, 3] | None = None
    """Grey (1) or colour (3); null keeps the source's."""
    labelled: Count | None = None
    """Few-shot: keep this many training samples (the same number of every class); null keeps all."""
    validation: Weight = 0.1
    """How much is cut from train, before `labelled` is applied: a share below 1, a number of samples from 1; 0 cuts none,
    as protocols of the literature have it."""
    test: Positive = 0.2
    """How much is cut from the whole where the source has no test split of its own: a share below 1, a number from 1."""
    label_range: tuple[float, float] | None = None
    """Keep only the samples whose scalar label lies in [min, max]."""
    memory_budget: Annotated[int, Field(ge=0)] = 2048
    """MiB of images that may stay on the device; a larger set is read by `workers` while training."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Number of processes that read the images of a set beyond `memory_budget`."""

    @property
    def own(self) -> dict[str, Any]:
        """The settings that only this source has, validated."""
        return dict(self.__pydantic_extra__)

    def require_kind(self, kind: Kind, only: Kind) -> None:
        """Raise a ValueError unless the task makes `only` that of a label which this source has."""
        if kind != only:
            labels = "class ids" if only == "classification" else "scalars"
            raise ValueError(f"task.kind: {kind} does not fit data.name: {self.name}, whose labels are {labels}.")

    def place(self) -> Path:
        """The folder or file that holds the data. Raises ValueError: `root` is not set or does not exist."""
        if self.root is None:
            raise ValueError(f"data.root: {self.name} is read from disk; set data.root to its folder or file.")
        root = self.root.expanduser()
        if not root.exists():
            raise ValueError(f"data.root: {root} does not exist; set data.root to where {self.name} lies.")
        return root

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name") not in READERS:
            return values  # `name` is refused below
        name, options = values["name"], READERS.options(values["name"])
        own = {key: value for key, value in values.items() if key not in cls.model_fields}
        for key in own:
            if key not in options.model_fields:
                others = [other for other in READERS if key in READERS.options(other).model_fields]
                if others:
                    raise ValueError(f"{name} has no setting '{key}' ({', '.join(others)} have): remove it")
                raise ValueError(f"unknown key '{key}'{nearest(key, [*cls.model_fields, *options.model_fields])}")
        return values | options.of(own).model_dump(exclude_unset=True)

    @field_validator("label_range")
    @classmethod
    def _range_ascends(cls, ends):
        if ends is not None and (any(map(math.isnan, ends)) or ends[0] > ends[1]):
            raise ValueError(f"the smallest label comes first: [min, max], got {list(ends)}")
        return ends
