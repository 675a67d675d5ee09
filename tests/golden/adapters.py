"""Dotted names of the golden vectors that are modules in this project: load the given tensors, call, compute nothing."""

from torch.func import functional_call

from gankd.losses import pool_generator_features
from gankd.methods.label_free.squeeze_and_span import Squeeze
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


def squeeze_embeddings(
    *,
    generator_features,
    fusion_weights,
    fusion_biases,
    hidden_weights,
    norm_weights,
    norm_biases,
    output_weight,
    output_bias,
):
    widths = tuple(weight.shape[1] for weight in fusion_weights)
    module = Squeeze(widths, output_weight.shape[1], output_weight.shape[0], depth=len(hidden_weights) + 1)
    module.to(output_weight.dtype)
    weights = {"output.weight": output_weight, "output.bias": output_bias}
    for index, (weight, bias) in enumerate(zip(fusion_weights, fusion_biases, strict=True)):
        weights |= {f"fuse.{index}.weight": weight, f"fuse.{index}.bias": bias}
    for index, values in enumerate(zip(hidden_weights, norm_weights, norm_biases, strict=True)):
        names = ("0.weight", "1.weight", "1.bias")
        weights |= {f"hidden.{index}.{name}": value for name, value in zip(names, values, strict=True)}
    return functional_call(module, weights, pool_generator_features(generator_features=generator_features))


ADAPTERS = {
    "gankd.losses.squeeze_embeddings": squeeze_embeddings,
    "gankd.synthesis.density_ratio_mlp": density_ratio_mlp,
    "gankd.synthesis.acceptance": acceptance,
    "gankd.synthesis.rejection_sample": rejection_sample,
}
