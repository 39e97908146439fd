"""The public names: type checkers read them here, and `attnhook.names` imports each when it is first used."""

from attnhook.imaging.animations import overlay_video as overlay_video
from attnhook.imaging.depth_figures import depth_figure as depth_figure
from attnhook.imaging.depth_figures import map_grid as map_grid
from attnhook.imaging.drawing import heatmap as heatmap
from attnhook.imaging.drawing import overlay as overlay
from attnhook.imaging.figures import overlay_figure as overlay_figure
from attnhook.imaging.figures import sheet as sheet
from attnhook.imaging.figures import triptych as triptych
from attnhook.imaging.geometry import ImageGeometry as ImageGeometry
from attnhook.imaging.images import read_image as read_image
from attnhook.imaging.overlays import colorize as colorize
from attnhook.imaging.overlays import common_range as common_range
from attnhook.imaging.overlays import overlay_batch as overlay_batch
from attnhook.imaging.overlays import value_range as value_range
from attnhook.imaging.patch_maps import PatchMap as PatchMap
from attnhook.imaging.styles import mass_mask as mass_mask
