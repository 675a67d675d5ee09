"""How much time the library adds to the network passes that cannot be avoided (scripts/benchmark.py)."""
