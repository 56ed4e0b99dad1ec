"""Image classifiers and backbones of the transformers library."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.hf_common import ids, noise, ones, register

LOGITS = ("logits",)
BATCH = {"pixel_values": {0: "batch"}}


def image(
    name: str, model: str, size: int, keys: tuple[str, ...] = LOGITS, *, config: Any = None,
    family: str = "vision",
    **options: Any,
) -> None:  # fmt: skip
    channels = options.get("num_channels", 3)
    register(
        name,
        family,
        model,
        config or options,
        {"pixel_values": noise(1, channels, size, size)},
        keys=keys,
        dynamic=BATCH,
    )


image(
    "vit", "ViTForImageClassification", 224, hidden_size=192, num_hidden_layers=6, num_attention_heads=3,
    intermediate_size=760, image_size=224, patch_size=16, num_labels=100,
)  # fmt: skip
image(
    "swin", "SwinForImageClassification", 224, embed_dim=96, depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24],
    window_size=7, image_size=224, patch_size=4, num_labels=100,
)  # fmt: skip
image(
    "swinv2", "Swinv2ForImageClassification", 64, embed_dim=36, depths=[2, 2], num_heads=[3, 6],
    window_size=4,
    image_size=64, patch_size=4, num_labels=17,
)  # fmt: skip
image(
    "hf_resnet", "ResNetForImageClassification", 64, embedding_size=24, hidden_sizes=[56, 104, 168],
    depths=[1, 2, 1],
    layer_type="bottleneck", num_labels=19,
)  # fmt: skip
image(
    "hf_convnext", "ConvNextForImageClassification", 64, hidden_sizes=[28, 52, 88, 140], depths=[1, 1, 2, 1],
    num_labels=21,
)  # fmt: skip
image(
    "hf_convnextv2", "ConvNextV2ForImageClassification", 64, hidden_sizes=[20, 44, 76, 124],
    depths=[1, 1, 2, 1],
    num_labels=23,
)  # fmt: skip
image(
    "hf_regnet", "RegNetForImageClassification", 64, embedding_size=20, hidden_sizes=[32, 64, 128, 256],
    depths=[1, 1, 2, 1], groups_width=16, layer_type="y", num_labels=25,
)  # fmt: skip
image("hf_mobilenet_v1", "MobileNetV1ForImageClassification", 96, depth_multiplier=0.5, num_labels=27)
image("hf_mobilenet_v2", "MobileNetV2ForImageClassification", 96, depth_multiplier=0.5, num_labels=29)
image(
    "hf_efficientnet", "EfficientNetForImageClassification", 96, width_coefficient=0.5, depth_coefficient=0.5,
    hidden_dim=640, image_size=96, num_labels=31,
)  # fmt: skip
image(
    "deit", "DeiTForImageClassificationWithTeacher", 64, ("cls_logits", "distillation_logits"),
    hidden_size=84,
    num_hidden_layers=2, num_attention_heads=6, intermediate_size=200, image_size=64, patch_size=8,
    num_labels=33,
)  # fmt: skip
image(
    "beit", "BeitForImageClassification", 64, hidden_size=88, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=188, image_size=64, patch_size=8, use_relative_position_bias=True, num_labels=35,
)  # fmt: skip
image(
    "data2vec_vision", "Data2VecVisionModel", 64, ("last_hidden_state",), hidden_size=80, num_hidden_layers=2,
    num_attention_heads=5, intermediate_size=172, image_size=64, patch_size=16,
    use_shared_relative_position_bias=True,
)  # fmt: skip
image(
    "poolformer", "PoolFormerForImageClassification", 64, hidden_sizes=[24, 40, 72, 104], depths=[1, 1, 2, 1],
    num_labels=37,
)  # fmt: skip
image(
    "dinov2", "Dinov2Model", 70, ("last_hidden_state", "pooler_output"), hidden_size=96, num_hidden_layers=2,
    num_attention_heads=6, mlp_ratio=3, image_size=70, patch_size=14, use_swiglu_ffn=True,
)  # fmt: skip
image(
    "levit", "LevitForImageClassification", 64, image_size=64, hidden_sizes=[48, 72, 96],
    num_attention_heads=[3, 4, 6],
    depths=[1, 1, 1], key_dim=[16, 16, 16], patch_size=16, num_labels=39,
    down_ops=[["Subsample", 16, 3, 4, 2, 2], ["Subsample", 16, 4, 4, 2, 2]],
)  # fmt: skip
image(
    "mobilevit", "MobileViTForImageClassification", 64, image_size=64, hidden_sizes=[36, 44, 52],
    neck_hidden_sizes=[8, 12, 20, 28, 40, 48, 160], num_attention_heads=4, mlp_ratio=2.0, num_labels=41,
)  # fmt: skip
image(
    "mobilevitv2", "MobileViTV2ForImageClassification", 64, image_size=64, width_multiplier=0.5, num_labels=42
)
image(
    "cvt",
    "CvtForImageClassification",
    64,
    embed_dim=[24, 48, 96],
    num_heads=[1, 2, 4],
    depth=[1, 2, 3],
    num_labels=43,
)
image(
    "focalnet", "FocalNetForImageClassification", 64, image_size=64, embed_dim=28,
    hidden_sizes=[28, 56, 112, 224],
    depths=[1, 1, 2, 1], focal_levels=[2, 2, 2, 2], focal_windows=[3, 3, 3, 3], num_labels=45,
)  # fmt: skip
image(
    "pvt", "PvtForImageClassification", 64, image_size=64, hidden_sizes=[24, 48, 80, 128],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 5, 8], mlp_ratios=[4, 4, 3, 3], num_labels=47,
)  # fmt: skip
image(
    "pvtv2", "PvtV2ForImageClassification", 64, image_size=64, hidden_sizes=[24, 40, 80, 128],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 5, 8], mlp_ratios=[4, 4, 3, 3], num_labels=48,
)  # fmt: skip
image(
    "bit", "BitForImageClassification", 64, embedding_size=32, hidden_sizes=[64, 128, 192], depths=[1, 2, 1],
    num_groups=8, num_labels=51,
)  # fmt: skip
image(
    "swiftformer", "SwiftFormerForImageClassification", 64, image_size=64, depths=[1, 1, 2, 1],
    embed_dims=[24, 40, 72, 104], num_labels=52,
)  # fmt: skip
image(
    "hiera", "HieraForImageClassification", 64, image_size=[64, 64], embed_dim=32, depths=[1, 1, 2, 1],
    num_heads=[1, 2, 4, 8], num_labels=53,
)  # fmt: skip
image(
    "convnext_backbone", "ConvNextBackbone", 64, ("feature_maps",), hidden_sizes=[24, 40, 64, 96],
    depths=[1, 1, 1, 1], out_features=["stage2", "stage4"],
)  # fmt: skip


def clip_config() -> Any:
    from transformers import CLIPConfig

    return CLIPConfig(
        text_config={
            "vocab_size": 661,
            "hidden_size": 72,
            "intermediate_size": 156,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "max_position_embeddings": 32,
            "projection_dim": 52,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 80,
            "intermediate_size": 204,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "image_size": 64,
            "patch_size": 16,
            "projection_dim": 52,
        },
        projection_dim=52,
    )


register(
    "clip",
    "vision",
    "CLIPModel",
    clip_config,
    {"input_ids": ids(661, 3, 12), "pixel_values": noise(2, 3, 64, 64), "attention_mask": ones(3, 12)},
    keys=("logits_per_image", "text_embeds", "image_embeds"),
)
register(
    "clip_vision",
    "vision",
    "CLIPVisionModelWithProjection",
    {
        "hidden_size": 84,
        "intermediate_size": 212,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "image_size": 64,
        "patch_size": 16,
        "projection_dim": 44,
    },
    {"pixel_values": noise(1, 3, 64, 64)},
    keys=("image_embeds",),
    dynamic=BATCH,
)
register(
    "clip_text",
    "text",
    "CLIPTextModelWithProjection",
    {
        "vocab_size": 673,
        "hidden_size": 76,
        "intermediate_size": 164,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "projection_dim": 48,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    },
    {"input_ids": ids(673, 1, 12), "attention_mask": ones(1, 12)},
    keys=("text_embeds",),
    dynamic={"input_ids": {0: "batch"}, "attention_mask": {0: "batch"}},
)
register(
    "siglip_vision",
    "vision",
    "SiglipVisionModel",
    {
        "hidden_size": 92,
        "intermediate_size": 196,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
    },
    {"pixel_values": noise(1, 3, 64, 64)},
    keys=("last_hidden_state", "pooler_output"),
    dynamic=BATCH,
)
