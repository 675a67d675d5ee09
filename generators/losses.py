"""Adversarial losses and their regularisers: pure functions of logits, images and weights.

Every loss is computed in float32 (float64 inputs stay float64), also inside autocast, and returns 0-d tensors.
Logits are [N] or [N, 1]; real and fake ones may differ in number, as each source has its own mean.
`loss="vanilla"` is the logistic loss with sigmoid probabilities p = sigmoid(D), taken in log space from the logits D; an
unknown loss raises a ValueError.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hinge_discriminator_loss(*, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake)). Returns (total, real term, fake term).

    Source: Lim & Ye, "Geometric GAN", arXiv 1705.02894, 2017; Miyato et al., ICLR 2018, eq. 16.
    """
    return _discriminator_loss(real_logits, fake_logits, "hinge")


def hinge_generator_loss(*, fake_logits: Tensor) -> Tensor:
    """-mean D(fake). Source: Miyato et al., ICLR 2018, eq. 17."""
    return _generator_terms(fake_logits, "hinge").mean()


def nonsaturating_discriminator_loss(*, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logistic loss -mean ln p(real) - mean ln(1 - p(fake)). Returns (total, real term, fake term).

    Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014.
    """
    return _discriminator_loss(real_logits, fake_logits, "vanilla")


def nonsaturating_generator_loss(*, fake_logits: Tensor) -> Tensor:
    """-mean ln p(fake), which does not saturate. Source: Goodfellow et al., NeurIPS 2014, section 3."""
    return _generator_terms(fake_logits, "vanilla").mean()


def hard_vicinal_discriminator_loss(*, real_logits: Tensor, fake_logits: Tensor, loss: str = "hinge") -> Tensor:
    """Hard vicinal discriminator loss (HVDL): every sample inside the window of its target label weighs the same.

    L = mean l_real + mean l_fake, with
      hinge:    l_real = relu(1 - D), l_fake = relu(1 + D)
      vanilla:  l_real = -ln p,       l_fake = -ln(1 - p)

    Logits are conditioned on the TARGET labels; the samples come from `vicinity.sample_vicinity(vicinity="hard")`, whose
    sampling stands for the paper's per-target counts. Source: Ding et al., "CcGAN", ICLR 2021 (arXiv 2011.07466).
    """
    return _discriminator_loss(real_logits, fake_logits, loss)[0]


def soft_vicinal_discriminator_loss(
    *,
    real_logits: Tensor,  # [N] or [N, 1]: D(real image, target label)
    fake_logits: Tensor,  # [N] or [N, 1]: D(fake image, target label)
    real_labels: Tensor,  # [N]: the real images' own labels, normalised to [0, 1]
    fake_labels: Tensor,  # [N]: the labels the generator was given
    target_labels: Tensor,  # [N]: the labels the discriminator was given
    kappa: float,
    loss: str = "hinge",
) -> Tensor:
    """Soft vicinal discriminator loss (SVDL): a sample counts less the farther its label is from the target.

    L = mean w(y_real) l_real + mean w(y_fake) l_fake,  w(y) = exp(-kappa (y - y_target)^2)

    with l as in the hard loss. The weights are not normalised: sampling inside the window replaces the paper's
    per-target normalisers. They carry no gradient of their own unless the labels do.
    Raises ValueError when logits and labels differ in number. Source: as the hard loss.
    """
    real_terms, fake_terms = _discriminator_terms(real_logits, fake_logits, loss)
    targets = _full_precision(target_labels).reshape(-1)
    terms = []
    for name, values, labels in (("real", real_terms, real_labels), ("fake", fake_terms, fake_labels)):
        # [N, 1] logits times [N] weights would broadcast to [N, N]: flatten, and insist on equal lengths.
        values, labels = values.reshape(-1), _full_precision(labels).reshape(-1)
        if not len(values) == len(labels) == len(targets):
            raise ValueError(
                f"soft vicinal loss needs one {name} logit, {name} label and target label per sample, "
                f"got {len(values)}, {len(labels)} and {len(targets)}"
            )
        terms.append((torch.exp(-kappa * (labels - targets) ** 2) * values).mean())
    return terms[0] + terms[1]


def vicinal_generator_loss(*, fake_logits: Tensor, loss: str = "hinge") -> Tensor:
    """Generator loss beside either vicinal loss, unweighted: -mean D (hinge) or -mean ln p (vanilla).

    The fakes are generated AND judged at the noisy target labels. Source: as the vicinal losses.
    """
    return _generator_terms(fake_logits, loss).mean()


def r1_penalty(*, real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Gradient penalty on real images: mean over samples of |grad_x D(x)|^2. The caller multiplies by gamma / 2.

    The logits come from real_images [N, C, H, W], which must require a gradient (`real_images.requires_grad_()` before the
    forward; else a ValueError). The result keeps its graph, for the backward through it. A discriminator with batch norm
    mixes its samples: its per-sample gradients are then not what the paper means.
    Source: Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018, eq. 9.
    """
    if not real_images.requires_grad:
        raise ValueError("r1_penalty: call real_images.requires_grad_() before the discriminator's forward")
    (gradient,) = torch.autograd.grad(_full_precision(real_logits).sum(), real_images, create_graph=True)
    return _full_precision(gradient).flatten(1).square().sum(dim=1).mean()


def mode_seeking_loss(
    *,
    first_images: Tensor,  # [N, C, H, W]: G(first_latents, labels)
    second_images: Tensor,  # [N, C, H, W]: G(second_latents, the same labels)
    first_latents: Tensor,  # [N, Z]
    second_latents: Tensor,  # [N, Z]
    eps: float = 1e-5,
) -> Tensor:
    """Mode-seeking regulariser of a conditional generator: different latents should give different images.

    L = mean_n 1 / ( mean|x1_n - x2_n| / mean|z1_n - z2_n| + eps ), the inner means over the entries of pair n

    so a pair of equal images costs 1 / eps. A pair of equal latents costs 0: it says nothing about modes.
    Source: Mao et al., "Mode Seeking Generative Adversarial Networks for Diverse Image Synthesis", CVPR 2019,
    arXiv 1903.05628 (which maximises the ratio; its inverse is what the authors minimise in training).
    """
    image_distances = (_full_precision(first_images) - _full_precision(second_images)).abs().flatten(1).mean(dim=1)
    latent_distances = (_full_precision(first_latents) - _full_precision(second_latents)).abs().flatten(1).mean(dim=1)
    # 1 / (image / latent + eps) multiplied out, so that equal latents do not divide by zero.
    denominators = image_distances + eps * latent_distances
    return (latent_distances / denominators.clamp_min(torch.finfo(denominators.dtype).tiny)).mean()


@torch.no_grad()
def orthogonal_regularisation_gradient(*, weight: Tensor, strength: float) -> Tensor:
    """Gradient of the off-diagonal orthogonality penalty, to be ADDED to weight.grad before the optimiser's step.

    W = weight as [out, rest];  gradient = strength * 2 (W W^T o (1 - I)) W

    This is half the gradient of strength * |W W^T o (1 - I)|_F^2; the authors' PyTorch code, whose
    strength is 1e-4, applies it in this scale. weight: [out, ...]. Returns a tensor of weight's shape, without a graph.
    Source: Brock, Donahue, Simonyan, "Large Scale GAN Training for High Fidelity Natural Image Synthesis",
    ICLR 2019, eq. 3.
    """
    with torch.autocast(weight.device.type, enabled=False):
        matrix = _full_precision(weight).flatten(1)  # [out, rest]
        gram = matrix @ matrix.T
        gradient = 2 * strength * (gram - torch.diag(gram.diagonal())) @ matrix
    return gradient.view_as(weight).to(weight.dtype)


def _discriminator_loss(real_logits: Tensor, fake_logits: Tensor, loss: str) -> tuple[Tensor, Tensor, Tensor]:
    """Total, real term and fake term."""
    real_term, fake_term = (terms.mean() for terms in _discriminator_terms(real_logits, fake_logits, loss))
    return real_term + fake_term, real_term, fake_term


def _discriminator_terms(real_logits: Tensor, fake_logits: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Per-sample losses of real and fake logits, in the logits' shapes."""
    real_logits, fake_logits = _full_precision(real_logits), _full_precision(fake_logits)
    if loss == "hinge":
        return F.relu(1 - real_logits), F.relu(1 + fake_logits)
    if loss == "vanilla":
        return -F.logsigmoid(real_logits), -F.logsigmoid(-fake_logits)  # 1 - sigmoid(D) = sigmoid(-D)
    raise ValueError(f"unknown adversarial loss {loss!r}: use 'hinge' or 'vanilla'")


def _generator_terms(fake_logits: Tensor, loss: str) -> Tensor:
    fake_logits = _full_precision(fake_logits)
    if loss == "hinge":
        return -fake_logits
    if loss == "vanilla":
        return -F.logsigmoid(fake_logits)
    raise ValueError(f"unknown adversarial loss {loss!r}: use 'hinge' or 'vanilla'")


def _full_precision(tensor: Tensor) -> Tensor:
    """float32, or float64 if it already is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
