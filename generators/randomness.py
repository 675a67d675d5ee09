"""Randomness as a function of named integers, so that any step or chunk can be repeated alone."""

import hashlib

import torch


def mix(*keys: int | str) -> int:
    """A well-mixed 63-bit seed from a tuple of integers and words, the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def check_seed(seed: int) -> None:
    """Raise a ValueError unless every library takes `seed`: a whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed!r} is no whole number from 0 to 2^63 - 1; choose one.")


def seeded(*keys: int | str) -> torch.Generator:
    """A CPU generator for the stream named by `keys`."""
    return torch.Generator().manual_seed(mix(*keys))
