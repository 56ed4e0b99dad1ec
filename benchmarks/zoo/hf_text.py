"""Text networks of the transformers library; sizes differ, so that axes cannot be confused."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.hf_common import ids, ones, register

HIDDEN = ("last_hidden_state",)
LOGITS = ("logits",)
OPEN = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}


def encoder(
    name: str, model: str, length: int, vocabulary: int, keys: tuple[str, ...] = HIDDEN, **config: Any
) -> None:
    inputs = {"input_ids": ids(vocabulary, 1, length), "attention_mask": ones(1, length)}
    register(name, "text", model, {"vocab_size": vocabulary, **config}, inputs, keys=keys, dynamic=OPEN)


def decoder(name: str, model: str, length: int, vocabulary: int, **config: Any) -> None:
    inputs = {"input_ids": ids(vocabulary, 1, length), "attention_mask": ones(1, length)}
    config = {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, **config}
    register(name, "text", model, config, inputs, keys=LOGITS, dynamic=OPEN, use_cache=False)


BERT = {"hidden_size": 312, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1200}
encoder(
    "bert", "BertModel", 64, 3001, ("last_hidden_state", "pooler_output"), max_position_embeddings=128, **BERT
)
encoder(
    "bert_tagger", "BertForTokenClassification", 24, 501, LOGITS, hidden_size=60, num_hidden_layers=2,
    num_attention_heads=5, intermediate_size=152, num_labels=9, max_position_embeddings=64,
)  # fmt: skip
encoder(
    "distilbert",
    "DistilBertModel",
    22,
    503,
    dim=84,
    n_layers=2,
    n_heads=6,
    hidden_dim=220,
    max_position_embeddings=64,
)
encoder(
    "roberta", "RobertaForMaskedLM", 20, 509, LOGITS, hidden_size=96, num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=200, max_position_embeddings=70,
)  # fmt: skip
encoder(
    "albert", "AlbertModel", 21, 521, embedding_size=40, hidden_size=104, num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=232, max_position_embeddings=64,
)  # fmt: skip
encoder(
    "electra", "ElectraModel", 23, 523, embedding_size=44, hidden_size=100, num_hidden_layers=2,
    num_attention_heads=5, intermediate_size=248, max_position_embeddings=64,
)  # fmt: skip
encoder(
    "deberta", "DebertaV2Model", 18, 541, hidden_size=108, num_hidden_layers=2, num_attention_heads=6,
    intermediate_size=260, max_position_embeddings=64, relative_attention=True, position_buckets=16,
    pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True,
)  # fmt: skip
encoder(
    "mpnet", "MPNetModel", 19, 547, hidden_size=88, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=196,
    max_position_embeddings=64,
)  # fmt: skip
encoder(
    "modernbert", "ModernBertModel", 26, 557, hidden_size=112, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=180, max_position_embeddings=64, local_attention=8, pad_token_id=0, cls_token_id=1,
    sep_token_id=2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip

LLAMA = {"hidden_size": 288, "intermediate_size": 776, "num_hidden_layers": 4, "num_attention_heads": 6}
decoder("llama", "LlamaForCausalLM", 48, 1531, num_key_value_heads=3, max_position_embeddings=128, **LLAMA)
decoder(
    "qwen2", "Qwen2ForCausalLM", 44, 1511, hidden_size=256, intermediate_size=680, num_hidden_layers=3,
    num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
)  # fmt: skip
decoder(
    "qwen3", "Qwen3ForCausalLM", 17, 563, hidden_size=120, intermediate_size=212, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=3, head_dim=28, max_position_embeddings=64,
)  # fmt: skip
decoder(
    "mistral", "MistralForCausalLM", 20, 569, hidden_size=128, intermediate_size=328, num_hidden_layers=2,
    num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=64, sliding_window=8,
)  # fmt: skip
decoder(
    "gemma", "GemmaForCausalLM", 18, 571, hidden_size=116, intermediate_size=348, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=1, head_dim=36, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
decoder(
    "gemma2", "Gemma2ForCausalLM", 19, 573, hidden_size=126, intermediate_size=272, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=20, max_position_embeddings=64, sliding_window=8,
    pad_token_id=0, query_pre_attn_scalar=20,
)  # fmt: skip
decoder(
    "phi", "PhiForCausalLM", 16, 577, hidden_size=160, intermediate_size=420, num_hidden_layers=2,
    num_attention_heads=5, max_position_embeddings=64, partial_rotary_factor=0.5,
)  # fmt: skip
decoder(
    "phi3", "Phi3ForCausalLM", 15, 587, hidden_size=132, intermediate_size=304, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
decoder(
    "mixtral", "MixtralForCausalLM", 14, 593, hidden_size=104, intermediate_size=188, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, num_local_experts=5, num_experts_per_tok=2,
    max_position_embeddings=64, experts_implementation="batched_mm",
)  # fmt: skip
decoder(
    "falcon", "FalconForCausalLM", 13, 599, hidden_size=140, num_hidden_layers=2, num_attention_heads=5,
    multi_query=True, parallel_attn=True, bias=False, alibi=False, max_position_embeddings=64,
)  # fmt: skip
decoder("gpt2", "GPT2LMHeadModel", 25, 601, n_embd=108, n_layer=3, n_head=6, n_inner=416, n_positions=64)
decoder(
    "gpt_neox", "GPTNeoXForCausalLM", 24, 607, hidden_size=112, intermediate_size=424, num_hidden_layers=2,
    num_attention_heads=7, max_position_embeddings=64,
)  # fmt: skip
decoder(
    "gpt_neo", "GPTNeoForCausalLM", 23, 608, hidden_size=92, intermediate_size=364, num_layers=2, num_heads=4,
    attention_types=[[["global", "local"], 1]], window_size=8, max_position_embeddings=64,
)  # fmt: skip
decoder(
    "opt", "OPTForCausalLM", 22, 613, hidden_size=116, ffn_dim=388, num_hidden_layers=2,
    num_attention_heads=4,
    word_embed_proj_dim=68, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
decoder("bloom", "BloomForCausalLM", 21, 617, hidden_size=120, n_layer=2, n_head=6, pad_token_id=0)
decoder(
    "codegen",
    "CodeGenForCausalLM",
    20,
    619,
    n_embd=96,
    n_layer=2,
    n_head=4,
    rotary_dim=12,
    n_inner=356,
    n_positions=64,
)
decoder(
    "stablelm", "StableLmForCausalLM", 17, 631, hidden_size=128, intermediate_size=244, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, partial_rotary_factor=0.25, use_qkv_bias=True,
    max_position_embeddings=64,
)  # fmt: skip
register(
    "mamba",
    "text",
    "MambaForCausalLM",
    {
        "vocab_size": 641,
        "hidden_size": 72,
        "state_size": 7,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "expand": 2,
        "time_step_rank": 5,
        "pad_token_id": 0,
    },
    {"input_ids": ids(641, 1, 10)},
    keys=LOGITS,
    use_cache=False,
)


def seq2seq(name: str, model: str, vocabulary: int, length: int, target: int, **config: Any) -> None:
    inputs = {
        "input_ids": ids(vocabulary, 1, length),
        "attention_mask": ones(1, length),
        "decoder_input_ids": ids(vocabulary, 1, target),
    }
    open_axes = {**OPEN, "decoder_input_ids": {0: "batch", 1: "target_length"}}
    config = {"vocab_size": vocabulary, "decoder_start_token_id": 0, "pad_token_id": 0, **config}
    register(name, "text", model, config, inputs, keys=LOGITS, dynamic=open_axes, use_cache=False)


seq2seq(
    "t5",
    "T5ForConditionalGeneration",
    643,
    17,
    11,
    d_model=100,
    d_kv=28,
    d_ff=228,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=5,
    feed_forward_proj="gated-gelu",
)
seq2seq(
    "bart",
    "BartForConditionalGeneration",
    647,
    18,
    12,
    d_model=112,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=4,
    decoder_attention_heads=7,
    encoder_ffn_dim=236,
    decoder_ffn_dim=268,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    forced_eos_token_id=None,
)
seq2seq(
    "marian",
    "MarianMTModel",
    653,
    19,
    13,
    d_model=84,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=6,
    decoder_attention_heads=4,
    encoder_ffn_dim=212,
    decoder_ffn_dim=188,
    max_position_embeddings=64,
    eos_token_id=2,
    forced_eos_token_id=None,
)
