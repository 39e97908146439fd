"""What type checkers and editors read in place of `__init__.py`, which imports each name when it is first used."""

from attnhook.attribution.alarms import AlarmThresholds as AlarmThresholds
from attnhook.attribution.gradients import (
    gradient_attention as gradient_attention,
)
from attnhook.attribution.gradients import (
    gradient_rollout as gradient_rollout,
)
from attnhook.attribution.gradients import (
    legrad as legrad,
)
from attnhook.attribution.masks import attention_mask as attention_mask
from attnhook.attribution.methods import METHODS as METHODS
from attnhook.attribution.raw_maps import raw_attention as raw_attention
from attnhook.attribution.received import received_attention as received_attention
from attnhook.attribution.rollouts import rollout as rollout
from attnhook.attribution.statistics import attention_statistics as attention_statistics
from attnhook.attribution.value_weights import value_weighted_attention as value_weighted_attention
from attnhook.capture.adapters import (
    ModelAnatomy as ModelAnatomy,
)
from attnhook.capture.adapters import (
    Readout as Readout,
)
from attnhook.capture.adapters import (
    register_adapter as register_adapter,
)
from attnhook.capture.layout import TokenLayout as TokenLayout
from attnhook.capture.packing import PackedLayout as PackedLayout
from attnhook.capture.records import AttentionMaps as AttentionMaps
from attnhook.capture.records import BlockAttention as BlockAttention
from attnhook.capture.session import AttentionCapture as AttentionCapture
from attnhook.capture.sites import AttentionSite as AttentionSite
from attnhook.capture.traceable import TraceableCapture as TraceableCapture
from attnhook.capture.windows import WindowLayout as WindowLayout
from attnhook.imaging.animations import overlay_video as overlay_video
from attnhook.imaging.geometry import ImageGeometry as ImageGeometry
from attnhook.imaging.heatmaps import heatmap as heatmap
from attnhook.imaging.overlays import overlay as overlay
from attnhook.imaging.overlays import overlay_batch as overlay_batch
from attnhook.workflows.comparison.comparisons import Comparison as Comparison
from attnhook.workflows.comparison.runs import compare as compare
from attnhook.workflows.inspection import ModelDescription as ModelDescription
from attnhook.workflows.inspection import describe as describe
from attnhook.workflows.integrations.directory import DirectoryWriter as DirectoryWriter
from attnhook.workflows.integrations.mlflow import MlflowWriter as MlflowWriter
from attnhook.workflows.integrations.tensorboard import TensorBoardWriter as TensorBoardWriter
from attnhook.workflows.integrations.wandb import WandbWriter as WandbWriter
from attnhook.workflows.monitoring import AttentionMonitor as AttentionMonitor
from attnhook.workflows.pictures import (
    blocks_figure as blocks_figure,
)
from attnhook.workflows.pictures import (
    blocks_heads_figure as blocks_heads_figure,
)
from attnhook.workflows.pictures import (
    heads_figure as heads_figure,
)
from attnhook.workflows.pictures import (
    methods_figure as methods_figure,
)
from attnhook.workflows.pictures import (
    photo_figure as photo_figure,
)
from attnhook.workflows.pictures import (
    query_figure as query_figure,
)
from attnhook.workflows.results import AttentionResult as AttentionResult
from attnhook.workflows.results import attend as attend
from attnhook.workflows.verification import VerificationReport as VerificationReport
from attnhook.workflows.verification import verify as verify
from attnhook.zoo.loading import VisionModel as VisionModel
from attnhook.zoo.loading import load as load

__version__: str
