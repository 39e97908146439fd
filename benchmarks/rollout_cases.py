"""What `rollout.py` compares: ways to get rollouts and entropies of all blocks, and the proof that each gives what it claims.

The model is that of `overhead_cases`: ViT-S/16 with random weights whose queries and keys are enlarged, so that attention is far from uniform.
What is expected is computed in float64 from the unfused twin's own softmax matrices.
"""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from overhead_cases import Candidate, Case, CheckError, Spec
from torch import Tensor, nn

from attnhook import AttentionCapture, AttentionMaps, rollout

CASES = {
    "197 tokens": Spec("vit_small_patch16_224", 224, 1, 60),
    "1,025 tokens": Spec("vit_small_patch16_224", 512, 1, 45),
    "4,097 tokens": Spec("vit_small_patch16_224", 1024, 1, 11),
}
MAP_TOLERANCE = 1e-4
"""Of the largest entry: between float32 models whose kernels differ, through twelve blocks."""
ENTROPY_TOLERANCE = 1e-4
"""In nats: likewise."""


class RolloutCase(Case):
    """A model and the ways to roll its attention out.

    Args:
        spec: The model and its images.
        peer: Folder that fast-vit-rollout and OpenCV were installed to, or None: it is left out.
    """

    def __init__(self, spec: Spec, peer: Path | None = None) -> None:
        super().__init__(spec)
        self._peer = peer
        self.matrices: list[Tensor] = []
        self._rollouts: dict[str, Any] = {}

    @cached_property
    def expected_maps(self) -> tuple[Tensor, Tensor]:
        """The class token's rollout over the patches, and every block's mean entropy a head; float64, from explicit matrices."""
        fused, spread = [], []
        for matrix in self._explicit():
            fused.append(matrix.mean(dim=1))
            spread.append(torch.special.entr(matrix).sum(dim=-1, dtype=torch.float64))
            matrix.untyped_storage().resize_(0)
        self.matrices.clear()
        row = torch.zeros(len(fused[0]), 1, fused[0].shape[-1], dtype=torch.float64)
        row[..., 0] = 1.0
        for matrix in reversed(fused):
            row = 0.5 * row + 0.5 * torch.bmm(row, matrix.double())
        return row[:, 0, 1:], torch.stack(spread).mean(dim=-1)

    @cached_property
    def collecting(self) -> nn.Module:
        """The unfused twin with hooks that collect its softmax matrices, as every rollout script does."""
        for name, module in self.unfused.named_modules():
            if name.endswith("attn_drop"):
                module.register_forward_hook(lambda _, inputs, __: self.matrices.append(inputs[0]))
        return self.unfused

    def candidates(self) -> dict[str, Candidate]:
        """Every candidate by name; building this builds no model."""
        chosen = {
            "bare": Candidate(lambda: self.model(self.images)),
            "bare again": Candidate(lambda: self.model(self.images), "bare"),
            "attnhook, rows='all' alone": Candidate(lambda: self._captured(len), "bare"),
            "attnhook, rollout": Candidate(lambda: self._captured(lambda m: rollout(m).values), "bare", self.check_map),
            "attnhook, rollout, max over heads": Candidate(
                lambda: self._captured(lambda m: rollout(m, heads="max").values), "bare"
            ),
            "attnhook, rollout, discard 0.9": Candidate(
                lambda: self._captured(lambda m: rollout(m, discard=0.9).values), "bare"
            ),
            # A gradient rollout would stand here: forward and backward, against the bare forward and backward as its base.
            "attnhook, entropy": Candidate(lambda: self._captured(entropies), "bare", self.check_entropy),
            "dense rollout, row by matrices": Candidate(self._dense_row, "bare", self.check_map),
            "dense rollout, matrix by matrix": Candidate(self._dense_matrix, "bare", self.check_map),
            "dense entropy": Candidate(self._dense_entropy, "bare", self.check_entropy),
        }
        if self._peer is not None:
            for fusion in ("mean", "max"):
                check = self.check_map if fusion == "mean" else None
                name = f"fast-vit-rollout, {fusion} over heads"
                chosen[name] = Candidate(lambda fusion=fusion: self._peers(fusion), "bare", check)
        return chosen

    # --- ours -----------------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _capture(self) -> AttentionCapture:
        return AttentionCapture(self.model, rows="all")

    def _captured(self, method: Any) -> Any:
        with self._capture as capture:
            self.model(self.images)
        return method(capture.maps)

    # --- theirs ---------------------------------------------------------------------------------------------------------------------------

    def _explicit(self) -> list[Tensor]:
        self.matrices.clear()
        self.collecting(self.images)
        return self.matrices

    def _dense_row(self) -> Tensor:
        matrices = [matrix.mean(dim=1) for matrix in self._explicit()]
        row = matrices[-1][:, :1].mul(0.5)
        row[..., 0] += 0.5
        for matrix in reversed(matrices[:-1]):
            row = 0.5 * row + 0.5 * torch.bmm(row, matrix)
        self.matrices.clear()
        return row[:, 0, 1:]

    def _dense_matrix(self) -> Tensor:
        """As Abnar and Zuidema's code and its copies do."""
        through = torch.empty(0)
        for matrix in self._explicit():
            step = (matrix.mean(dim=1) + torch.eye(matrix.shape[-1])) / 2
            step /= step.sum(dim=-1, keepdim=True)
            through = torch.bmm(step, through) if through.numel() else step
        self.matrices.clear()
        return through[:, 0, 1:]

    def _dense_entropy(self) -> Tensor:
        found = [torch.special.entr(matrix).sum(dim=-1).mean(dim=-1) for matrix in self._explicit()]
        self.matrices.clear()
        return torch.stack(found)

    def _peers(self, fusion: str) -> Tensor:
        if fusion not in self._rollouts:
            self._rollouts[fusion] = self._peers_rollout(fusion)
        peer = self._rollouts[fusion]
        through: Tensor = peer(self.images)
        peer.attentions = []
        return through[:, 0, 1:]

    def _peers_rollout(self, fusion: str) -> Any:
        """The peer around an unfused twin of its own: its hooks stay attached."""
        if str(self._peer) not in sys.path:
            sys.path.append(str(self._peer))
        from fast_vit_rollout import ViTAttentionRollout

        twin = self._sharing("model", self._timm(fused=False))
        return ViTAttentionRollout(twin, head_fusion=fusion, discard_ratio=0.0)

    # --- checks ---------------------------------------------------------------------------------------------------------------------------

    def check_map(self, found: Tensor) -> float:
        """Largest error of a rollout over its largest entry; raises `CheckError` over `MAP_TOLERANCE`."""
        expected = self.expected_maps[0]
        error = float((found.flatten(1) - expected).abs().max() / expected.max())
        return _accepted(error, MAP_TOLERANCE, "the rollout's largest entry")

    def check_entropy(self, found: Tensor) -> float:
        """Largest error of a head's mean entropy in nats; raises `CheckError` over `ENTROPY_TOLERANCE`."""
        error = float((found - self.expected_maps[1]).abs().max())
        return _accepted(error, ENTROPY_TOLERANCE, "nats")


def entropies(maps: AttentionMaps) -> Tensor:
    """Mean entropy of every block and head: `(blocks, batch, heads)` float64."""
    return torch.stack([block.matrix.entropy().mean(dim=-1) for block in maps])


def _accepted(error: float, allowed: float, unit: str) -> float:
    if not error <= allowed:
        raise CheckError(f"off by {error:.1e} of {unit}, expected at most {allowed:.0e}")
    return error
