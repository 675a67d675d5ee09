"""Dotted names of the golden vectors that are modules in this project: load the given tensors, call, compute nothing."""

from gankd.synthesis import DensityRatio
from tests.synthesis.oracles import acceptance, rejection_sample


def density_ratio_mlp(
    *, features, label_embedding, linear_weights, linear_biases, norm_weights, norm_biases, num_groups
):
    widths = [len(weight) for weight in linear_weights[:-1]]
    ratio = DensityRatio(features.shape[1], label_embedding.shape[1], widths, num_groups=num_groups).eval()
    linears, norms = ratio.layers[::4], ratio.layers[1::4]
    ratio.layers[-2].weight.data, ratio.layers[-2].bias.data = linear_weights[-1], linear_biases[-1]
    for linear, weight, bias in zip(linears, linear_weights[:-1], linear_biases[:-1], strict=False):
        linear.weight.data, linear.bias.data = weight, bias
    for norm, weight, bias in zip(norms, norm_weights, norm_biases, strict=False):
        norm.weight.data, norm.bias.data = weight, bias
    return ratio(features, label_embedding)


ADAPTERS = {
    "gankd.synthesis.acceptance": acceptance,
    "gankd.synthesis.density_ratio_mlp": density_ratio_mlp,
    "gankd.synthesis.rejection_sample": rejection_sample,
}
