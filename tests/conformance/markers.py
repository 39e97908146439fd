"""Where a marker painted on a photo comes out, found in the pixels alone: the oracle that geometries are checked against."""

import math

import numpy as np
from PIL import Image

from attnhook.imaging.calling import run

GREY, BRIGHT = 110, 230
_ACROSS = 3  # patches that a marker spans, so that no other order of the patches makes it as compact
KERNEL = 3  # pixels that resampling looks beyond an edge


def photo_of(size, marker=None):
    """A grey photo, with a bright square (top, left, bottom, right) where a marker is given."""
    pixels = np.full((*size, 3), GREY, np.uint8)
    if marker is not None:
        top, left, bottom, right = marker
        pixels[top:bottom, left:right] = BRIGHT
    return Image.fromarray(pixels)


def misplaced(preprocess, size, each, rng, *, patch=16, tries=2, mirrors=False):
    """Check geometries against markers.

    Returns what is wrong, in words, or None; and how many markers were compared.
    """
    plain = pictures_of(run(preprocess, photo_of(size)), size[1] / size[0])
    if len(plain) != len(each):
        return f"{len(plain)} inputs, {len(each)} geometries", 0
    compared = 0
    shown = [number for number, geometry in enumerate(each) if geometry is not None]
    for attempt in range(tries + 1):
        number = shown[int(rng.integers(len(shown)))]
        anywhere = attempt == tries
        marker = _marker(each[number], size, rng, anywhere, plain[number][1])
        if marker is None:
            continue
        marked = pictures_of(run(preprocess, photo_of(size, marker)), size[1] / size[0])
        for geometry, (before, side), (after, _) in zip(each, plain, marked, strict=True):
            said, counted = _checked(geometry, before, after, marker, side, patch, mirrors)
            compared += counted
            if said:
                return f"{said} (marker {marker})", compared
    return None, compared


def _marker(geometry, size, rng, anywhere, side):
    """A square that survives downscaling: four input pixels, or three patches, and inside what the geometry says is visible."""
    visible = (0, 0, *size) if anywhere else geometry.visible
    marker = []
    for axis in (0, 1):
        pixel = 1 / geometry.scale[axis]
        length = max(round(_ACROSS * side * pixel), 1) if side > 1 else max(3, math.ceil(4 * pixel))
        first, last = visible[axis], visible[axis + 2]
        length = min(length, max(round(side * pixel), int((last - first) * 0.6)))  # most of the photo stays as it was
        room = KERNEL * max(1, pixel) if not anywhere else 0
        low, high = math.ceil(first + room), math.floor(last - room - length)
        if high < low:
            low, high = math.ceil(first), math.floor(last - length)
        if high < low:
            return None
        start = int(rng.integers(low, high + 1))
        marker.append((start, start + length))
    return marker[0][0], marker[1][0], marker[0][1], marker[1][1]


def _checked(geometry, before, after, marker, side, patch, mirrors):
    change = before.change(after) if isinstance(before, Unordered) else after - before
    if (np.abs(change) < 0.02 * np.abs(change).max()).mean() < 0.1:
        change = change - np.median(change)  # the photo is standardised: a marker changes its background
    change = np.abs(change)
    change[change < 0.04 * change.max(initial=0)] = 0  # rounding, ringing
    if geometry is None:
        return (None, 0) if change.max(initial=0) < 0.02 else ("a marker in an input that shows padding only", 1)
    if side * geometry.input_size[0] and tuple(np.array(before.shape) * side) != geometry.input_size:
        return f"pixels {np.array(before.shape) * side}, geometry {geometry.input_size}", 1
    corners = *geometry.to_input(*marker[:2]), *geometry.to_input(*marker[2:])
    valid = geometry.valid
    margin = KERNEL * max(1.0, *geometry.scale) + side - 1
    inside = all(corners[i] >= valid[i] for i in (0, 1)) and all(corners[i] <= valid[i] for i in (2, 3))
    beside = any(corners[i + 2] < valid[i] - margin or corners[i] > valid[i + 2] + margin for i in (0, 1))
    if beside:
        return (None, 1) if change.max(initial=0) < 0.02 else ("a marker that should not be visible", 1)
    if not inside or (side == 1 and min(corners[2] - corners[0], corners[3] - corners[1]) < KERNEL):
        return None, 0  # cut off, or too small to survive in this one of several inputs
    if change.max(initial=0) < 0.02:
        return "a marker that is not visible", 1
    if mirrors and _near_a_border(geometry, corners):
        return None, 0
    rows, columns = (np.arange(n) + 0.5 for n in change.shape)
    y, x = (change.sum(1) @ rows / change.sum() * side, change.sum(0) @ columns / change.sum() * side)
    back = geometry.to_image(y, x)
    for axis in (0, 1):
        wanted = (marker[axis] + marker[axis + 2]) / 2
        off = abs(back[axis] - wanted)
        pixel = 1 / geometry.scale[axis]
        allowed = patch / 2 * pixel if side == 1 else side / 2 * pixel
        if side == 1:
            allowed = min(allowed, 2 + pixel / 2) if allowed > 1 else allowed
        if off > allowed:
            return (
                f"{('vertically', 'horizontally')[axis]} {off:.1f} photo pixels off ({off / pixel:.1f} of the input)",
                1,
            )
    return None, 1


def _near_a_border(geometry, corners):
    """Whether a border that mirrors the photo may show the marker a second time."""
    for axis in (0, 1):
        first, last = geometry.valid[axis], geometry.valid[axis + 2]
        widest = max(first, geometry.input_size[axis] - last) + KERNEL
        if corners[axis] < first + widest or corners[axis + 2] > last - widest:
            return True
    return False


def pictures_of(inputs, aspect=1.0):
    """Every input as one plane of brightness, and how many pixels an entry stands for: 1, or a patch's side.

    Packed patches are laid out by what the libraries say about their order, not by anything that was measured.
    """
    words, pixels = inputs.keywords or {}, inputs.pixels.detach().float()
    grids = words.get("image_grid_thw")
    if grids is None and words.get("image_grid_hw") is not None:
        grids = [[1, *map(int, one)] for one in words["image_grid_hw"]]
    if grids is not None:
        _, rows, columns = (int(n) for n in grids[0])
        means = pixels.reshape(len(pixels), -1).mean(1).numpy()
        return [(Unordered(means, rows, columns), _side(pixels))]
    if "spatial_shapes" in words and pixels.dim() == 3:
        return [
            (one[: int(r) * int(c)].mean(1).reshape(int(r), int(c)).numpy(), _side(one))
            for one, (r, c) in zip(pixels, words["spatial_shapes"], strict=True)
        ]
    if "flattened_patches" in words:
        return [_by_place(one[:, 2:], one[:, :2].flip(1) - 1) for one in pixels]
    if "image_position_ids" in words:
        return [_by_place(one, place) for one, place in zip(pixels, words["image_position_ids"], strict=True)]
    if "image_token_pooling" in words:  # Molmo2: square crops, row by row
        edge = math.isqrt(pixels.shape[1])
        return [(one.mean(1).reshape(edge, edge).numpy(), _side(one)) for one in pixels]
    if "target_sizes" in words and pixels.dim() == 4 and pixels.shape[-1] > 20 * pixels.shape[-2]:
        side, found, at = pixels.shape[-2], [], 0
        means = pixels[0].unfold(-1, side, side).mean((0, 1, 3)).numpy()
        for rows, columns in words["target_sizes"].tolist():
            found.append((means[at : at + rows * columns].reshape(rows, columns), side))
            at += rows * columns
        return found
    if pixels.dim() == 5 and "num_patches" in words and pixels.shape[-1] == 3:  # Inkling: patches row by row
        means = pixels.flatten(1).mean(1).numpy()
        pairs = [(len(means) // c, c) for c in range(1, len(means) + 1) if not len(means) % c]
        rows, columns = min(pairs, key=lambda pair: abs(math.log(pair[1] / pair[0] / aspect)))
        return [(means.reshape(rows, columns), pixels.shape[-2])]
    planes = pixels.reshape(-1, *pixels.shape[-3:]).mean(1) if pixels.dim() >= 3 else pixels[None]
    return [(one.numpy(), 1) for one in planes]


class Unordered:
    """Patches of which the libraries differ in the order: row by row, or in blocks that will be merged."""

    def __init__(self, means, rows, columns):
        self.means, self.shape = means, (rows, columns)

    def laid(self, merge):
        rows, columns = self.shape
        blocks = self.means.reshape(rows // merge, columns // merge, merge, merge)
        return blocks.transpose(0, 2, 1, 3).reshape(rows, columns)

    def change(self, after):
        """The change between two photos, in whichever order makes it the most compact."""
        merges = [n for n in (1, 2, 3, 4) if not self.shape[0] % n and not self.shape[1] % n]
        return min((after.laid(n) - self.laid(n) for n in merges), key=lambda change: _spread(np.abs(change)))


def _spread(change):
    rows, columns = (np.arange(n) for n in change.shape)
    mass = max(change.sum(), 1e-9)
    y, x = change.sum(1) @ rows / mass, change.sum(0) @ columns / mass
    return (change.sum(1) @ (rows - y) ** 2 + change.sum(0) @ (columns - x) ** 2) / mass


def _by_place(patches, place):
    """Patches of known column and row; those with negative places are padding."""
    used = (place >= 0).all(1)
    columns, rows = place[used].long().numpy().T
    plane = np.zeros((rows.max() + 1, columns.max() + 1), np.float32)
    plane[rows, columns] = patches[used].mean(1).numpy()
    return plane, _side(patches)


def _side(patches):
    length = int(np.prod(patches.shape[1:]))
    for layers in (3, 6, 1):
        side = math.isqrt(length // layers)
        if side * side * layers == length:
            return side
    return 1
