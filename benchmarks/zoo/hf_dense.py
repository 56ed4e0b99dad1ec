"""Detection, segmentation and depth networks of the transformers library."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.hf_vision import image


def resnet_config() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=20, hidden_sizes=[32, 48, 72, 104], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


DETR: dict[str, Any] = {
    "d_model": 72, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 6,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 156, "decoder_ffn_dim": 188, "num_queries": 13,
    "num_labels": 11,
}  # fmt: skip
BOXES = ("logits", "pred_boxes")


def detr_like(name: str, cls: str, config: str, size: int = 96, **options: Any) -> None:
    def make() -> Any:
        import transformers

        nested = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
        return getattr(transformers, config)(
            **{**DETR, **nested, "backbone_config": resnet_config(), **options}
        )

    image(name, cls, size, BOXES, config=make, family="detector")


detr_like("detr", "DetrForObjectDetection", "DetrConfig")
detr_like("conditional_detr", "ConditionalDetrForObjectDetection", "ConditionalDetrConfig")
detr_like(
    "deformable_detr",
    "DeformableDetrForObjectDetection",
    "DeformableDetrConfig",
    num_feature_levels=4,
    d_model=96,
    encoder_attention_heads=6,
    decoder_attention_heads=6,
)

image(
    "yolos", "YolosForObjectDetection", 64, BOXES, family="detector", hidden_size=76, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=172, image_size=[64, 64], patch_size=16, num_detection_tokens=9,
    num_labels=12,
)  # fmt: skip


def rt_detr_config() -> Any:
    from transformers import RTDetrConfig, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=24, hidden_sizes=[24, 40, 64, 88], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=64, encoder_in_channels=[40, 64, 88],
        feat_strides=[8, 16, 32],
        encoder_layers=1, encoder_ffn_dim=132, encoder_attention_heads=4, d_model=64, num_queries=17,
        decoder_in_channels=[64, 64, 64], decoder_ffn_dim=148, decoder_layers=2, decoder_attention_heads=8,
        decoder_n_points=3, num_denoising=0, num_labels=14, use_timm_backbone=False, backbone=None,
        hidden_expansion=1.0,
    )  # fmt: skip


image("rt_detr", "RTDetrForObjectDetection", 128, BOXES, config=rt_detr_config, family="detector")

image(
    "segformer", "SegformerForSemanticSegmentation", 64, hidden_sizes=[24, 40, 80, 120], depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 5, 6], decoder_hidden_size=52, num_labels=15,
)  # fmt: skip


def upernet_config() -> Any:
    from transformers import ConvNextConfig, UperNetConfig

    backbone = ConvNextConfig(
        hidden_sizes=[20, 36, 60, 84],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return UperNetConfig(
        backbone_config=backbone, hidden_size=44, pool_scales=[1, 2], auxiliary_in_channels=60,
        auxiliary_channels=28,
        num_labels=16,
    )  # fmt: skip


image("upernet", "UperNetForSemanticSegmentation", 64, config=upernet_config)
image(
    "dpt", "DPTForDepthEstimation", 64, ("predicted_depth",), hidden_size=80, num_hidden_layers=4,
    num_attention_heads=5, intermediate_size=164, image_size=64, patch_size=16,
    backbone_out_indices=[0, 1, 2, 3],
    neck_hidden_sizes=[20, 28, 44, 60], fusion_hidden_size=36, is_hybrid=False,
)  # fmt: skip
image(
    "glpn", "GLPNForDepthEstimation", 64, ("predicted_depth",), hidden_sizes=[24, 40, 80, 120],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 5, 6], decoder_hidden_size=28,
)  # fmt: skip
image(
    "swin2sr", "Swin2SRForImageSuperResolution", 32, ("reconstruction",), image_size=32, embed_dim=36,
    depths=[2, 2],
    num_heads=[3, 3], window_size=4, upscale=2,
)  # fmt: skip


def swin_backbone() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=128, embed_dim=24, depths=[1, 1, 1, 1], num_heads=[2, 3, 4, 6], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def mask2former_config() -> Any:
    from transformers import Mask2FormerConfig

    return Mask2FormerConfig(
        backbone_config=swin_backbone(), feature_size=64, mask_feature_size=52, hidden_dim=64,
        encoder_feedforward_dim=116, encoder_layers=2, decoder_layers=2, num_attention_heads=4,
        dim_feedforward=140,
        num_queries=10, num_labels=18,
    )  # fmt: skip


MASKS = ("class_queries_logits", "masks_queries_logits")
image(
    "mask2former",
    "Mask2FormerForUniversalSegmentation",
    128,
    MASKS,
    config=mask2former_config,
    family="detector",
)


def maskformer_config() -> Any:
    from transformers import DetrConfig, MaskFormerConfig

    decoder = DetrConfig(**DETR, use_timm_backbone=False, backbone_config=resnet_config())
    return MaskFormerConfig(
        fpn_feature_size=64,
        mask_feature_size=48,
        backbone_config=swin_backbone(),
        decoder_config=decoder,
        num_labels=20,
    )


image(
    "maskformer", "MaskFormerForInstanceSegmentation", 128, MASKS, config=maskformer_config, family="detector"
)
