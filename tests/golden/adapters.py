"""Dotted names of the golden vectors that are modules in this project: load the given tensors, call, compute nothing."""

from torch.func import functional_call

from gankd.losses import pool_generator_features
from gankd.methods.alone.mixskd import Discriminator
from gankd.methods.label_free.squeeze_and_span import Squeeze
from gankd.methods.memory_bank import MemoryBank
from gankd.methods.peers.ffl import Fusion
from gankd.methods.peers.mfef import ChannelAttention, DualAttention, MultiScale, SpatialAttention
from gankd.methods.peers.one import Gate
from gankd.methods.teacher.crd import Embedding
from gankd.methods.teacher.reviewkd import Attention
from gankd.methods.teacher.vid import VariationalRegressor
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


def attention_based_fusion(*, feature, residual, weight, bias):
    return functional_call(Attention(feature.shape[1]), {"weight": weight, "bias": bias}, (feature, residual))


def crd_update_bank(*, bank, embedding, indices, momentum=0.5):
    module = MemoryBank(bank.clone(), momentum=momentum, normalize=True)
    module.write(indices, embedding)
    return module.rows


def embed_and_normalize(*, feature, weight, bias):
    return functional_call(Embedding(weight.shape[1], len(weight)), {"weight": weight, "bias": bias}, (feature,))


def vid_loss(*, student_feature, teacher_feature, regressor_weights, log_scale, eps=1e-5):
    module = VariationalRegressor(student_feature.shape[1], len(log_scale), 1.0, smallest_variance=eps)
    weights = {f"convolutions.{depth}.weight": weight for depth, weight in enumerate(regressor_weights)}
    return functional_call(module, weights | {"log_scale": log_scale}, (student_feature, teacher_feature))


def one_gates(*, feature_map, weight, bias, norm_weight, norm_bias):
    weights = {"linear.weight": weight, "linear.bias": bias, "norm.weight": norm_weight, "norm.bias": norm_bias}
    return functional_call(Gate(*weight.T.shape), weights, feature_map)


def fused_logits(*, feature_maps, **weights):
    outputs, channels = weights["classifier_weight"].shape
    weights = {name.replace("_weight", ".weight").replace("_bias", ".bias"): value for name, value in weights.items()}
    return functional_call(Fusion(len(feature_maps), channels, outputs), weights, feature_maps)


def multi_scale_features(*, feature_map, kernels):
    weights = {f"kernels.{index}.weight": kernel for index, kernel in enumerate(kernels)}
    return functional_call(MultiScale(feature_map.shape[1], len(kernels) + 1), weights, feature_map)


def channel_attention(*, feature_map, reduce_weight, expand_weight):
    weights = {"reduce.weight": reduce_weight, "expand.weight": expand_weight}
    return functional_call(ChannelAttention(*expand_weight.shape), weights, feature_map)


def spatial_attention(*, feature_map, kernel):
    return functional_call(SpatialAttention(kernel.shape[-1]), {"kernel.weight": kernel}, feature_map)


def dual_attention(*, feature_map, reduce_weight, expand_weight, spatial_kernel):
    weights = {
        "channel.reduce.weight": reduce_weight,
        "channel.expand.weight": expand_weight,
        "spatial.kernel.weight": spatial_kernel,
    }
    attention = DualAttention(len(expand_weight), height=spatial_kernel.shape[-1], reduction=1)
    return functional_call(attention, weights, feature_map)


def mixskd_discriminator_scores(*, feature, **weights):
    weights = {name.replace("_weight", ".weight").replace("_bias", ".bias"): value for name, value in weights.items()}
    width, channels = weights["hidden.weight"].shape
    return functional_call(Discriminator(channels, width), weights, feature)


ADAPTERS = {
    "gankd.losses.attention_based_fusion": attention_based_fusion,
    "gankd.losses.crd_update_bank": crd_update_bank,
    "gankd.losses.embed_and_normalize": embed_and_normalize,
    "gankd.losses.vid_loss": vid_loss,
    "gankd.losses.squeeze_embeddings": squeeze_embeddings,
    "gankd.synthesis.density_ratio_mlp": density_ratio_mlp,
    "gankd.synthesis.acceptance": acceptance,
    "gankd.synthesis.rejection_sample": rejection_sample,
    "gankd.losses.one_gates": one_gates,
    "gankd.losses.fused_logits": fused_logits,
    "gankd.losses.multi_scale_features": multi_scale_features,
    "gankd.losses.channel_attention": channel_attention,
    "gankd.losses.spatial_attention": spatial_attention,
    "gankd.losses.dual_attention": dual_attention,
    "gankd.losses.mixskd_discriminator_scores": mixskd_discriminator_scores,
}
