"""How well predictions fit scalar labels, whatever the labels' units and wherever they lie."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class LabelScores(Metric):
    """Mean absolute error, root mean squared error (both in the labels' units) and R2, in double precision on the CPU.

    The samples are kept until the end and centred before they are squared: labels of 20000 +- 1 or of 1e-9 lose nothing.
    """

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """predictions, labels: [N] each, in the labels' units."""
        self.predictions.append(predictions)
        self.labels.append(labels.to(predictions.dtype))

    def compute(self) -> dict[str, Tensor]:
        """`mae`, `rmse` and, where the labels are not all equal, `r2`."""
        predictions, labels = (dim_zero_cat(values).cpu().double() for values in (self.predictions, self.labels))
        errors = predictions - labels
        variance, squared = (labels - labels.mean()).square().mean(), errors.square().mean()
        scores = {"mae": errors.abs().mean(), "rmse": squared.sqrt()}
        return scores if variance == 0 else {**scores, "r2": 1 - squared / variance}
