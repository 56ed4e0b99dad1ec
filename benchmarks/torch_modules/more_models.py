"""Models of the transformers library beyond the zoo: multimodal, video, documents, time series, further text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Model = tuple[Any, dict[str, Any]]
MORE: dict[str, Callable[[], Model]] = {}

TEXT: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
VISION: dict[str, Any] = {**TEXT, "image_size": 32, "patch_size": 8}


def model(name: str, cls: str, config: Callable[[Any], Any], **inputs: Any) -> None:
    """Register ``transformers.<cls>``; ``config`` takes the library, ``inputs`` are shapes, or (vocabulary, shape)."""

    def build() -> Model:
        import torch
        import transformers

        kwargs = {}
        for key, value in inputs.items():
            if isinstance(value[0], int) and isinstance(value[1], tuple):
                kwargs[key] = torch.randint(3, value[0], value[1])
            elif key == "bbox":
                kwargs[key] = torch.randint(0, 40, value).sort(-1).values
            elif key.endswith("mask"):
                kwargs[key] = torch.ones(value, dtype=torch.int64)
            else:
                kwargs[key] = torch.randn(value)
        return getattr(transformers, cls)(config(transformers)), kwargs

    MORE[name] = build


model("siglip", "SiglipModel", lambda t: t.SiglipConfig(text_config={**TEXT, "vocab_size": 90, "max_position_embeddings": 16},
      vision_config=VISION), input_ids=(90, (2, 8)), pixel_values=(2, 3, 32, 32))  # fmt: skip
model("blip", "BlipForImageTextRetrieval", lambda t: t.BlipConfig(image_text_hidden_size=20, text_config={**TEXT, "vocab_size": 90,
      "max_position_embeddings": 16, "encoder_hidden_size": 48, "projection_dim": 20, "bos_token_id": 1, "eos_token_id": 2,
      "sep_token_id": 2}, vision_config={**VISION, "projection_dim": 20}),
      input_ids=(90, (2, 8)), pixel_values=(2, 3, 32, 32), attention_mask=(2, 8))  # fmt: skip
model("owlvit", "OwlViTForObjectDetection", lambda t: t.OwlViTConfig(projection_dim=48, text_config={**TEXT, "vocab_size": 90,
      "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, vision_config=VISION),
      input_ids=(90, (2, 8)), pixel_values=(2, 3, 32, 32), attention_mask=(2, 8))  # fmt: skip
model("llava", "LlavaForConditionalGeneration", lambda t: t.LlavaConfig(
      vision_config=t.CLIPVisionConfig(**VISION), text_config=t.LlamaConfig(**TEXT, vocab_size=90, num_key_value_heads=2),
      image_token_index=89), input_ids=(80, (2, 8)))  # fmt: skip
model("vilt", "ViltModel", lambda t: t.ViltConfig(**VISION, vocab_size=90, max_position_embeddings=16, max_image_length=16),
      input_ids=(90, (2, 8)), pixel_values=(2, 3, 32, 32), attention_mask=(2, 8))  # fmt: skip
model("layoutlm", "LayoutLMForTokenClassification", lambda t: t.LayoutLMConfig(**TEXT, vocab_size=90, max_position_embeddings=16,
      max_2d_position_embeddings=40, num_labels=7), input_ids=(90, (2, 8)), bbox=(2, 8, 4))  # fmt: skip
model("videomae", "VideoMAEForVideoClassification", lambda t: t.VideoMAEConfig(**VISION, num_frames=4, num_labels=6),
      pixel_values=(2, 4, 3, 32, 32))  # fmt: skip
model("timesformer", "TimesformerForVideoClassification", lambda t: t.TimesformerConfig(**VISION, num_frames=2, num_labels=6),
      pixel_values=(2, 2, 3, 32, 32))  # fmt: skip
model("patchtst", "PatchTSTForPrediction", lambda t: t.PatchTSTConfig(num_input_channels=3, context_length=32, patch_length=8,
      patch_stride=8, prediction_length=6, d_model=32, num_attention_heads=4, ffn_dim=48, num_hidden_layers=2),
      past_values=(2, 32, 3))  # fmt: skip
model("squeezebert", "SqueezeBertForSequenceClassification", lambda t: t.SqueezeBertConfig(**TEXT, vocab_size=90, embedding_size=48,
      max_position_embeddings=16, num_labels=6), input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("mobilebert", "MobileBertForSequenceClassification", lambda t: t.MobileBertConfig(vocab_size=90, hidden_size=48,
      num_hidden_layers=2, num_attention_heads=4, intermediate_size=40, embedding_size=24, intra_bottleneck_size=24,
      max_position_embeddings=16, num_labels=6), input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("xlnet", "XLNetForSequenceClassification", lambda t: t.XLNetConfig(vocab_size=90, d_model=48, n_layer=2, n_head=4, d_inner=80,
      num_labels=6), input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("funnel", "FunnelForSequenceClassification", lambda t: t.FunnelConfig(vocab_size=90, block_sizes=[1, 1], d_model=48, n_head=4,
      d_head=12, d_inner=80, num_labels=6), input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("fnet", "FNetForSequenceClassification", lambda t: t.FNetConfig(vocab_size=90, hidden_size=48, num_hidden_layers=2,
      intermediate_size=80, max_position_embeddings=16, num_labels=6), input_ids=(90, (2, 8)))  # fmt: skip
model("olmo2", "Olmo2ForCausalLM", lambda t: t.Olmo2Config(**TEXT, vocab_size=90, num_key_value_heads=2, pad_token_id=0),
      input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("cohere", "CohereForCausalLM", lambda t: t.CohereConfig(**TEXT, vocab_size=90, num_key_value_heads=2, pad_token_id=0),
      input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("llama_sequence", "LlamaForSequenceClassification", lambda t: t.LlamaConfig(**TEXT, vocab_size=90, num_key_value_heads=2,
      pad_token_id=0, num_labels=5), input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("bert_questions", "BertForQuestionAnswering", lambda t: t.BertConfig(**TEXT, vocab_size=90, max_position_embeddings=16),
      input_ids=(90, (2, 8)), attention_mask=(2, 8))  # fmt: skip
model("encodec", "EncodecModel", lambda t: t.EncodecConfig(num_filters=8, hidden_size=24, codebook_dim=24, codebook_size=16,
      upsampling_ratios=[4, 2], num_lstm_layers=1, target_bandwidths=[24.0], sampling_rate=8000, normalize=False),
      input_values=(2, 1, 320))  # fmt: skip
model("trocr", "VisionEncoderDecoderModel", lambda t: t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
      t.ViTConfig(**VISION), t.TrOCRConfig(vocab_size=90, d_model=40, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
      max_position_embeddings=16, is_decoder=True, add_cross_attention=True, cross_attention_hidden_size=48)),
      pixel_values=(2, 3, 32, 32), decoder_input_ids=(90, (2, 8)))  # fmt: skip
