"""How good a generator is: feature extractors and scores (importing them takes torch-fidelity, about two seconds)."""
