"""Settings of tiny models of transformers, by model or configuration class, where `small_settings` does not make one that runs."""

from typing import Any

DROPPED = object()  # a setting to be left at its default

_TAPS = ["stage1", "stage2", "stage3", "stage4"]
_SMALL_VIT = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "patch_size": 16,
}
_RESNET = {
    "model_type": "resnet",
    "depths": [1] * 4,
    "hidden_sizes": [32, 48, 64, 96],
    "embedding_size": 16,
    "out_features": _TAPS,
}
_STRIPS = {f"{a}{b}ratio": [1, 1, 0] for b in ("long", "mid", "short") for a in (
    "vertical_long_to_small_conv_", "horizontal_small_to_long_conv_", "symmetric_conv_long_"
)} | {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}  # fmt: skip
_TIMM_VIT = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 96,
    "model_args": {"img_size": 64, "depth": 2},
    "global_pool": DROPPED,
}
_SAM = {
    "vision_config": {"num_pos_feats": 48},
    "prompt_encoder_config": {"image_embedding_size": 8, "patch_size": 8},
    "mask_decoder_config": {"num_hidden_layers": 2},
}
_SAPIENS = {
    "num_key_value_heads_per_layer": [4, 2],
    "head_config": {
        "upsample_out_channels": [32, 32], "upsample_kernel_sizes": [4, 4], "conv_out_channels": [16], "conv_kernel_sizes": [1],
        "scale_conv_out_channels": [16, 16], "scale_conv_kernel_sizes": [1, 1], "scale_final_input_size": 96,
        "scale_final_hidden_sizes": [16, 1],
    },
}  # fmt: skip
_DET_NECK = {"intraclass_block_config": _STRIPS, "scale_factor_list": [1, 2, 4, 8], "kernel_list": [3, 2, 2]}
SETTINGS: dict[str, dict[str, Any]] = {
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_features": DROPPED, "out_indices": [0, 1, 2, 3]},
    "BeitConfig": {"use_relative_position_bias": True},
    "CLIPSegForImageSegmentation": {"extract_layers": [0, 1], "vision_config": {"image_size": 64}, "reduce_dim": 32},
    "ConditionalDetrForSegmentation": {
        "d_model": 128,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "backbone_config": _RESNET,
    },
    "CvtConfig": {"depth": [1, 2, 3]},
    "Data2VecVisionConfig": {"use_relative_position_bias": True},
    "Data2VecVisionForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
    "DeepseekOcr2VisionConfig": {"sam_config": {"downsample_channels": [48, 96]}},
    "Deimv2DINOv3ConvEncoder": {
        "backbone_config": {"model_type": "dinov3_vit", **_SMALL_VIT, "out_features": _TAPS[1:]}
    },
    "DepthProConfig": {"intermediate_hook_ids": [1, 0]},
    "DetrForSegmentation": {
        "d_model": 128,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "backbone_config": _RESNET,
    },
    "DonutSwinConfig": {"window_size": 2},
    "Dots3NoteVisionConfig": {"adapter_in_dim": 96},
    "DPTConfig": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "EdgeTamVisionConfig": {"backbone_config": {"architecture": "repvit_m1"}},
    "EdgeTamModel": {
        "vision_config": {
            "backbone_config": {"architecture": "repvit_m1"},
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        "prompt_encoder_config": {"patch_size": 16},
    },
    "EfficientLoFTRConfig": {
        "out_features": [16, 16, 32, 256],
        "hidden_size": 256,
        "num_attention_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "EfficientNetConfig": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "AlignVisionConfig": {"width_coefficient": 0.5, "depth_coefficient": 0.5},
    "Gemma4VisionConfig": {"pooling_kernel_size": 2},
    "HieraForPreTraining": {"decoder_hidden_size": 96, "decoder_depth": 1, "decoder_num_heads": 4},
    "JanusVQVAEConfig": {"num_patches": 2, "base_channels": 32},
    "Kosmos2_5VisionConfig": {"patch_embed_hidden_size": 768},
    "LayoutLMv3Config": {"input_size": 64, "coordinate_size": 16, "shape_size": 16},
    "Llama4VisionConfig": {"intermediate_size": 384},
    "LwDetrConfig": {
        "projector_scale_factors": [1.0],
        "num_feature_levels": 1,
        "projector_in_channels": [96],
        "group_detr": 2,
        "backbone_config": {"window_block_indices": [0, 1, 3], "num_windows": 4, "num_windows_side": 2},
    },
    "LwDetrViTConfig": {"window_block_indices": [0], "num_windows": 4, "num_windows_side": 2},
    "MiniCPMOcrVisionConfig": {"insert_layer_id": 0},
    "MiniCPMV4_6VisionConfig": {"insert_layer_id": 0},
    "MiniCPMV4_7VisionConfig": {"insert_layer_id": 0},
    "MllamaVisionConfig": {"num_global_layers": 1, "intermediate_layers_indices": [0, 1]},
    "Molmo2VisionConfig": {"num_position_embeddings": 64},
    "PerceiverForImageClassificationFourier": {"num_cross_attention_heads": 1},
    "PerceiverForImageClassificationConvProcessing": {"num_cross_attention_heads": 1},
    "PeAudioVideoEncoderConfig": {"video_config": {"vision_config": _TIMM_VIT}},
    "PeVideoEncoderConfig": {"vision_config": _TIMM_VIT},
    "OmDetTurboConfig": {
        "text_projection_in_dim": 96,
        "text_projection_out_dim": 96,
        "decoder_hidden_dim": 64,
        "d_model": 64,
        "vision_features_channels": [64] * 3,
        "encoder_hidden_dim": 64,
        "backbone_config": {"img_size": 64, "out_indices": [1, 2, 3]},
    },
    "Pix2StructVisionConfig": {"patch_embed_hidden_size": 768},
    "PPDocLayoutV2ForObjectDetection": {"class_thresholds": [0.5] * 25, "class_order": list(range(25))},
    "PPOCRV5ServerDetConfig": _DET_NECK,
    "PPOCRV6MediumDetConfig": _DET_NECK,
    "PPOCRV6SmallDetConfig": {
        "layer_list_out_channels": [96, 96, 192, 384],
        "backbone_config": {"out_features": _TAPS},
    },
    "PvtConfig": {"image_size": 64},
    "TvpConfig": {"max_img_size": 128, "visual_prompt_size": 16, "num_frames": 2},
    "TimmWrapperConfig": _TIMM_VIT,
    "UperNetConfig": {
        "backbone_config": {
            "model_type": "swin",
            "window_size": 2,
            "depths": [1] * 4,
            "embed_dim": 24,
            "num_heads": [2] * 4,
            "out_features": _TAPS,
        }
    },
    "UnlimitedOcrVisionConfig": {"sam_config": {"downsample_channels": [48, 96]}},
    "UVDocConfig": {"backbone_config": {"out_features": [f"stage{i}" for i in range(1, 7)]}},
    "VisionTextDualEncoderConfig": {"vision_config": {"pooler_output_size": 96}},
    "VitMatteConfig": {"backbone_config": {"patch_size": 16}},
    **dict.fromkeys(("Sapiens2ForSemanticSegmentation", "Sapiens2ForNormalEstimation"), _SAPIENS),
    **dict.fromkeys(
        ("Sapiens2ForPoseEstimation", "Sapiens2ForPointmapEstimation", "Sapiens2ForImageMatting"), _SAPIENS
    ),
    "Sapiens2Config": {"num_key_value_heads_per_layer": [4, 2]},
    "Sam2Model": {
        "vision_config": {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        "prompt_encoder_config": {"patch_size": 16},
    },
    "Sam3TrackerModel": {"vision_config": {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}},
    "SamModel": _SAM,
    "SamHQModel": _SAM,
    "SegGptConfig": {"intermediate_hidden_state_indices": [0, 1], "merge_index": 0},
    "SiglipConfig": {"text_config": {"projection_size": 96}},
    "SuperGlueConfig": {"hidden_size": 256, "gnn_layers_types": ["self", "cross"]},
    "SwinModel": {"window_size": 2},
    "SwinForMaskedImageModeling": {"window_size": 2},
    "SwinForImageClassification": {"window_size": 2},
}

_WINDOWS = (
    "SamVision",
    "SamHQVision",
    "GotOcr2Vision",
    "SLANeXtVision",
    "DeepseekOcr2SamVision",
    "UnlimitedOcrSamVision",
    "PPFormulaNetVision",
    "Sam3ViT",
)
SETTINGS |= {f"{family}Config": {"window_size": 3, "global_attn_indexes": [1]} for family in _WINDOWS}
