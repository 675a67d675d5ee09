"""Images with labels, from wherever they lie to batches. Importing this package defines our sources of data."""

from gankd.data import readers  # noqa: F401
