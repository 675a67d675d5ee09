"""What a source of data is: a function by its name, and what it may ask of the settings before it reads anything.

    @READERS.register("my_set")          # of gankd.data.config
    def read_my_set(config: DataConfig, kind: Kind, *, year: int = 2020):
        root = require_root(config)
        return train, test      # each an `ImageSet` or what `as_image_set` takes; test None: it is cut from train

The keyword-only parameters are its own settings, beside the common ones in a YAML: `data: {name: my_set, year: 2021}`. A
class will do as well: its constructor takes the same arguments, and what it makes is a `Dataset` to train on.
"""

from pathlib import Path

from gankd.data.config import DataConfig, Kind


def require_kind(config: DataConfig, kind: Kind, only: Kind) -> None:
    """Refuse a source whose labels are not what the task learns.

    Raises ValueError: `kind` is not `only`.
    """
    if kind != only:
        labels = "class ids" if only == "classification" else "scalars"
        raise ValueError(f"task.kind: {kind} does not fit data.name: {config.name}, whose labels are {labels}.")


def require_root(config: DataConfig) -> Path:
    """The folder or file that holds the data.

    Raises ValueError: `root` is not set or does not exist.
    """
    if config.root is None:
        raise ValueError(f"data.root: {config.name} is read from disk; set data.root to its folder or file.")
    root = config.root.expanduser()
    if not root.exists():
        raise ValueError(f"data.root: {root} does not exist; set data.root to where {config.name} lies.")
    return root
