"""What it costs to stretch a crop's map over the whole photo, measured against masks of the objects.

    python benchmarks/placement.py PHOTOS MASKS

PHOTOS has .jpg files, MASKS a .png for each, of the same stem, white where objects are. The model is DINOv2-small (`demo:timm`) behind
timm's own evaluation transform, which resizes the photo's shorter edge and cuts out the centre. Raw attention of the last block, mean over
heads, is laid over the photo twice: where the transform says that it lies, and stretched over the whole photo, as scripts do. Scores are
means over the photos: the share whose highest pixel lies on an object (Zhang et al. 2016, arXiv 1608.00507) and the share of the map's mass
that lies on objects, beside the objects' share of the photo. Intervals are bootstrapped over photos, of the difference in pairs.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from attnhook import AttentionCapture, ImageGeometry, load, raw_attention
from attnhook.attribution.scores import energy_in_mask, pointing_game
from attnhook.imaging.images import read_image

SIZES = (518, 224)
SCORES = {"pointing": pointing_game, "energy": energy_in_mask}


def measured(photos: list[Path], masks: Path, size: int) -> dict[str, dict[str, list[float]]]:
    """Scores of every photo, by score and by how the map was placed."""
    model = load(f"demo:timm@{size}").model
    config = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=model)
    transform = timm.data.create_transform(**config)
    found: dict[str, dict[str, list[float]]] = {name: {"in place": [], "stretched": []} for name in SCORES}
    found["objects"] = {"share of the photo": []}
    for path in photos:
        photo = read_image(path)
        truth = torch.from_numpy(np.asarray(Image.open(masks / f"{path.stem}.png").convert("L")) > 127)
        with torch.inference_mode(), AttentionCapture(model) as capture:
            model(transform(photo).unsqueeze(0))
        patch_map = raw_attention(capture.maps)[0]
        whole = ImageGeometry.identity((photo.height, photo.width)).resize((size, size))
        for name, geometry in {"in place": ImageGeometry.of(transform, photo), "stretched": whole}.items():
            heat = patch_map.heatmap(geometry).nan_to_num()
            for score, function in SCORES.items():
                found[score][name].append(float(function(heat, truth)))
        found["objects"]["share of the photo"].append(float(truth.double().mean()))
    return found


def interval(first: list[float], second: list[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % of bootstrapped mean differences."""
    differences = np.asarray(first) - np.asarray(second)
    chosen = np.random.default_rng(0).integers(0, len(differences), (draws, len(differences)))
    low, high = np.percentile(differences[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = sorted(path for path in arguments.photos.glob("*.jpg") if (arguments.masks / f"{path.stem}.png").is_file())
    if not photos:
        parser.error(f"no photos: expected .jpg files in {arguments.photos} with masks in {arguments.masks}.")
    everything = {}
    print(
        f"{len(photos)} photos\n\n| input | score | in place | stretched | difference (95 %) |\n|---|---|---|---|---|"
    )
    for size in SIZES:
        found = everything[size] = measured(photos, arguments.masks, size)
        for score in SCORES:
            placed, stretched = found[score]["in place"], found[score]["stretched"]
            low, high = interval(placed, stretched)
            apart = np.mean(placed) - np.mean(stretched)
            print(
                f"| {size} px | {score} | {np.mean(placed):.2f} | {np.mean(stretched):.2f} | {apart:+.2f} ({low:+.2f} to {high:+.2f}) |"
            )
        print(
            f"| {size} px | objects' share of the photo | {np.mean(found['objects']['share of the photo']):.2f} | | |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
