"""Speech networks of the transformers library."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.hf_common import ids, noise, register

HIDDEN = ("last_hidden_state",)

WHISPER = {
    "vocab_size": 659, "num_mel_bins": 20, "d_model": 96, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 6, "encoder_ffn_dim": 220,
    "decoder_ffn_dim": 252,
    "max_source_positions": 50, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
register(
    "whisper",
    "speech",
    "WhisperForConditionalGeneration",
    WHISPER,
    {"input_features": noise(1, 20, 100), "decoder_input_ids": ids(659, 1, 9)},
    keys=("logits",),
    use_cache=False,
    dynamic={"input_features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "length"}},
)

CONVS: dict[str, Any] = {"conv_dim": (32, 40, 48), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)}
WAVE: dict[str, Any] = {
    **CONVS, "hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 164,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3,
    "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip


def wave(name: str, model: str, keys: tuple[str, ...], **config: Any) -> None:
    register(
        name,
        "speech",
        model,
        {**WAVE, **config},
        {"input_values": noise(1, 1600)},
        keys=keys,
        dynamic={"input_values": {0: "batch", 1: "samples"}},
    )


wave("wav2vec2", "Wav2Vec2ForCTC", ("logits",), vocab_size=37)
wave(
    "wav2vec2_stable",
    "Wav2Vec2Model",
    HIDDEN,
    do_stable_layer_norm=True,
    feat_extract_norm="layer",
    conv_bias=True,
)
wave("hubert", "HubertModel", HIDDEN)
wave("wavlm", "WavLMModel", HIDDEN)
wave("sew", "SEWModel", HIDDEN, squeeze_factor=2)
wave(
    "wav2vec2_conformer", "Wav2Vec2ConformerModel", HIDDEN, position_embeddings_type="rotary",
    conv_depthwise_kernel_size=9,
)  # fmt: skip
register(
    "speecht5",
    "speech",
    "SpeechT5ForSpeechToText",
    {
        **CONVS,
        "vocab_size": 43,
        "hidden_size": 80,
        "encoder_layers": 2,
        "encoder_attention_heads": 5,
        "encoder_ffn_dim": 172,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 148,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "num_feat_extract_layers": 3,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "apply_spec_augment": False,
    },
    {"input_values": noise(1, 1600), "decoder_input_ids": ids(43, 1, 8)},
    keys=("logits",),
    use_cache=False,
)
register(
    "ast",
    "speech",
    "ASTForAudioClassification",
    {
        "hidden_size": 84,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 180,
        "patch_size": 8,
        "frequency_stride": 6,
        "time_stride": 7,
        "max_length": 60,
        "num_mel_bins": 32,
        "num_labels": 13,
    },
    {"input_values": noise(1, 60, 32)},
    keys=("logits",),
    dynamic={"input_values": {0: "batch"}},
)
register(
    "hifigan",
    "speech",
    "SpeechT5HifiGan",
    {
        "model_in_dim": 20,
        "upsample_initial_channel": 72,
        "upsample_rates": [4, 3],
        "upsample_kernel_sizes": [8, 7],
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
        "normalize_before": True,
    },
    {"spectrogram": noise(1, 24, 20)},
    keys=(),
    dynamic={"spectrogram": {0: "batch", 1: "frames"}},
)
