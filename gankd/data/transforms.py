"""Changes of a batch of images, one parameter a sample: pure functions, without randomness and host synchronisation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Cut an [H, W] window out of each image after adding `padding` black pixels on each side.

    images: [N, C, H, W] of any type.
    offsets: int64 [N, 2], (top, left) corner of the window in the padded image, each in 0..2 * padding.
    padding: pixels.
    """
    num_images, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    padded_height, padded_width = padded.shape[2:]
    # A view of all runs of `width` bytes, then one gather that copies the H runs of every window: three times as fast
    # as indexing [N, C, 2 * padding + 1, 2 * padding + 1, H, W] windows, whose bytes are copied one by one.
    runs = padded.flatten().unfold(0, width, 1)
    planes = torch.arange(num_images * channels, device=images.device).view(num_images, channels, 1)
    top, left = offsets[:, :1, None], offsets[:, 1:, None]  # [N, 1, 1]
    rows = planes * padded_height + top + torch.arange(height, device=images.device)  # [N, C, H]
    return runs.index_select(0, (rows * padded_width + left).flatten()).view(images.shape)


def crop_boxes(shares: Tensor, ratios: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in whole pixels for `resized_crop`, int64 [N, 4]: (top, left, height, width).

    As torchvision's RandomResizedCrop, which draws share and ratio up to ten times until the box fits into the image;
    here the side that is too long is cut instead, so that nothing waits for a draw. A share close to 1 thus gives a box
    that is a little smaller, with a ratio between 1 and the one drawn in a square image.

    shares: [N], area of the box over the area of the image, in (0, 1].
    ratios: [N], width over height.
    places: [N, 2], each in [0, 1): where among its possible (rows, columns) the box lies.
    size: (height, width) of the images.
    """
    height, width = size
    heights = (height * width * shares / ratios).sqrt().round().clamp(1, height)
    widths = (height * width * shares * ratios).sqrt().round().clamp(1, width)
    tops = (places[:, 0] * (height - heights + 1)).floor()
    lefts = (places[:, 1] * (width - widths + 1)).floor()
    return torch.stack([tops, lefts, heights, widths], dim=1).long()


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge one box of each image to the image's size, bilinearly; what lies outside the box has no influence.

    images: float [N, C, H, W] in [0, 1].
    boxes: int64 [N, 4], (top, left, height, width), each within its image: enlarging needs no antialiasing.
    """
    height, width = images.shape[2:]

    def along(length: int, start: Tensor, extent: Tensor) -> Tensor:
        """Where `length` output pixels come from, [N, length], in the units of grid_sample (-1 and 1 are the borders)."""
        start, extent = start[:, None], extent[:, None]
        centres = (torch.arange(length, device=images.device) + 0.5) * (extent / length)  # from the box's border
        inside = torch.minimum(centres.clamp(min=0.5), extent - 0.5)  # repeats the outermost pixels of the box
        return (start + inside) * (2 / length) - 1

    top, left, box_height, box_width = boxes.unbind(dim=1)
    x, y = along(width, left, box_width)[:, None, :], along(height, top, box_height)[:, :, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)  # [N, H, W, 2]
    # bounded twice: by `along` at the box, and here where rounding puts a point 1e-7 outside the image
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return images.clamp_(0, 1)  # the four bilinear weights may sum to 1 + 1e-7


def horizontal_flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images [N, C, H, W] whose `mask` (bool [N]) is set."""
    both = torch.cat([images, images.flip(-1)])  # copying whole rows of bytes is five times as fast as torch.where
    positions = torch.arange(len(images), device=images.device)
    return both.index_select(0, positions + len(images) * mask)


def affine(images: Tensor, angles: Tensor, shifts: Tensor, scales: Tensor) -> Tensor:
    """Turn and magnify each image about its centre, then shift it: one bilinear resampling, black outside.

    images: float [N, C, H, W] in [0, 1].
    angles: [N], degrees, positive is anticlockwise.
    shifts: [N, 2], (right, down) as shares of the width and of the height.
    scales: [N], magnification, above 0.
    """
    height, width = images.shape[2:]
    radians = torch.deg2rad(angles)[:, None, None]
    cosine, sine = radians.cos() / scales[:, None, None], radians.sin() / scales[:, None, None]
    # Where each output pixel comes from, in pixels from the centre (x right, y down): input = A^-1 (output - shift).
    # Written out, because `affine_grid` is a matrix product, which TF32 and autocast may round to 8 or 11 bits.
    x = torch.arange(width, device=images.device) - (width - 1) / 2 - width * shifts[:, 0, None, None]  # [N, 1, W]
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2 - height * shifts[:, 1, None, None]
    grid = torch.stack([(cosine * x - sine * y) * (2 / width), (sine * x + cosine * y) * (2 / height)], dim=-1)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return images.clamp(0, 1)  # the four bilinear weights may sum to 1 + 1e-7


def erase_square(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Blacken one square of each image, clipped at the border (DeVries & Taylor 2017, arXiv:1708.04552).

    They fill with the mean of the data (zero after normalisation), this with 0.

    images: [N, C, H, W] of any type.
    centres: int64 [N, 2], (row, column); the square covers [centre - size // 2, centre - size // 2 + size).
    size: side in pixels.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - (centres[:, :1] - size // 2)  # [N, H], 0 at the square's top
    columns = torch.arange(width, device=images.device) - (centres[:, 1:] - size // 2)  # [N, W]
    inside_rows, inside_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    return images.masked_fill(inside_rows[:, None, :, None] & inside_columns[:, None, None, :], 0)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """factor * image, clamped to [0, 1]; images float [N, C, H, W] in [0, 1], factors [N] >= 0."""
    return (factors[:, None, None, None] * images).clamp(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """mean + factor * (image - mean), clamped to [0, 1], with the image's mean grey; shapes as for brightness."""
    grey = _grey(images) if images.shape[1] in (1, 3) else images.mean(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)  # [N, 1, 1, 1]
    return torch.lerp(mean, images, factors[:, None, None, None]).clamp(0, 1)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """grey + factor * (image - grey), clamped to [0, 1], with each pixel's grey; shapes as for brightness."""
    return torch.lerp(_grey(images), images, factors[:, None, None, None]).clamp(0, 1)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Move the hue of each pixel along the colour circle, with its HSV saturation and value kept.

    With V = max(R, G, B), chroma C = V - min(R, G, B) and hue h in [0, 1) (red 0, green 1/3, blue 2/3), the colour of
    (h, C, V) is V - C clamp(2 - 6 |h - o|, 0, 1) in each channel, where o is the hue opposite to the channel's and
    |.| the distance along the circle: the usual conversion from HSV to RGB without its six cases.

    images: float [N, C, H, W] in [0, 1]; those of one channel are returned as they are.
    shifts: [N], in turns of the circle; only the fraction matters.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = _colours(images)
    value = images.amax(dim=1, keepdim=True)  # [N, 1, H, W]
    chroma = value - images.amin(dim=1, keepdim=True)
    sixths = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    # of a grey pixel the hue is 0 / 0 and without influence: the smallest normal number makes it 0
    hue = sixths / (6 * chroma).clamp(min=torch.finfo(images.dtype).tiny) + shifts[:, None, None, None]
    opposite = 0.5 + torch.arange(3, device=images.device)[:, None, None] / 3  # cyan, magenta, yellow
    distance = hue - opposite  # [N, 3, H, W]
    distance = (distance - distance.round()).abs_()
    return value - distance.mul_(-6).add_(2).clamp_(0, 1).mul_(chroma)


def greyscale(images: Tensor, mask: Tensor) -> Tensor:
    """Put the grey of each pixel into all channels of the images [N, C, H, W] whose `mask` (bool [N]) is set."""
    return torch.where(mask[:, None, None, None], _grey(images), images)


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int) -> Tensor:
    """Weigh the neighbours of each pixel with a Gaussian, cut off at `radius` and divided by its sum.

    The outermost pixels are repeated beyond the border. Sums of shifted images instead of a convolution, which TF32 and
    autocast may round to 8 or 11 bits.

    images: float [N, C, H, W] in [0, 1].
    sigmas: [N], standard deviations in pixels; 0 leaves an image as it is.
    radius: pixels.
    """
    height, width = images.shape[2:]
    distances = torch.arange(radius + 1, device=images.device)
    # Below 0.01 pixels the weights of the neighbours are 0 in float32 anyway, and 0 / 0 is avoided.
    weights = (-0.5 * (distances / sigmas.clamp(min=0.01)[:, None]).square()).exp()  # [N, radius + 1]
    weights = weights / (2 * weights.sum(dim=1, keepdim=True) - 1)  # the middle, of weight exp(0) = 1, counts once
    middle, *others = weights[:, :, None, None, None].unbind(dim=1)  # each [N, 1, 1, 1]
    for dim, length, padding in ((2, height, (0, 0, radius, radius)), (3, width, (radius, radius, 0, 0))):
        padded = F.pad(images, padding, mode="replicate")
        images = middle * images
        for distance, weight in enumerate(others, start=1):
            before, after = (padded.narrow(dim, radius + step, length) for step in (-distance, distance))
            images.addcmul_(weight, before + after)
    return images.clamp_(0, 1)  # the weights may sum to 1 + 1e-7


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 as [N, 1, H, W]; an image of one channel is its own grey."""
    if images.shape[1] == 1:
        return images
    red, green, blue = _colours(images)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _colours(images: Tensor) -> tuple[Tensor, ...]:
    """Red, green and blue of the images, each [N, 1, H, W]."""
    if images.shape[1] != 3:
        raise ValueError(
            f"images of {images.shape[1]} channels have no colours; leave the augmentation's saturation, hue, greyscale 0."
        )
    return images.split(1, dim=1)
