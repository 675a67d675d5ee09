"""Samples that share their class: partners of those that were drawn, and draws that spread over the classes."""

import torch
from torch import Tensor

from generators.randomness import seeded


class ClassPairs:
    """For any sample another one of its group, drawn uniformly; the sample itself where its group has no other."""

    def __init__(self, groups: Tensor, *, device: torch.device):
        _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
        members = groups.argsort(stable=True)  # one group after the other
        first = (sizes.cumsum(dim=0) - sizes)[group]
        place = torch.empty_like(members)
        place[members] = torch.arange(len(members), device="cpu")
        self.members, self.first, self.size = members.to(device), first.to(device), sizes[group].to(device)
        self.place = (place - first).to(device)

    def partners(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """int64 positions [M] to those of their partners, [M]."""
        draws = torch.rand(len(positions), generator=generator, dtype=torch.float64, device="cpu")
        size = self.size[positions]
        steps_on = 1 + (draws.to(size.device, non_blocking=True) * (size - 1)).long()
        return self.members[self.first[positions] + (self.place[positions] + steps_on) % size]


class DistinctClasses:
    """A sample of every class in turn, classes in random order: no class comes twice in a step before all have come once.

    Args:
        labels: class ids int64 [N] of the union, on the CPU.
        parts: (first, last + 1, how many of them a step draws) of each set.
    """

    def __init__(self, labels: Tensor, parts: list[tuple[int, int, int]], *, seed: int, device: torch.device):
        self.seed, self.device, self.parts = seed, device, []
        num_classes = int(labels.max()) + 1
        for first, last, num_drawn in parts:
            sizes = labels[first:last].bincount(minlength=num_classes)
            self.parts.append((labels[first:last].argsort(stable=True) + first, sizes, num_drawn))

    def positions(self, step: int) -> Tensor:
        """int64 [samples of a step], positions in the union, those of one set after the other's."""
        generator, drawn = seeded(self.seed, "classes", step), []
        times = torch.zeros_like(self.parts[0][1])  # how often each class has come
        for members, sizes, left in self.parts:
            first = sizes.cumsum(dim=0) - sizes
            while left:
                order = (times + torch.rand(len(times), generator=generator, dtype=torch.float64)).argsort()
                classes = order[sizes[order] > 0][:left]
                places = torch.rand(len(classes), generator=generator, dtype=torch.float64) * sizes[classes]
                drawn.append(members[first[classes] + places.long()])
                times[classes] += 1
                left -= len(classes)
        return torch.cat(drawn).to(self.device, non_blocking=True)
