"""config.json as transformers 4 wrote it, for every supported model_type, read as the torch classes read it.

The judges: torch's states and logits of the same directory, and torch's config class, whose newest form of a file must
give the same settings as the file itself.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM  # noqa: E402

from seq2seq_jax.families import registry as families  # noqa: E402
from seq2seq_jax.models import ties  # noqa: E402
from seq2seq_jax.models.transformer import Transformer  # noqa: E402
from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.saving import save_pretrained  # noqa: E402
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import family_models as models  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
LENGTH = 40
# What the files of that day say beside the sizes.
EXTRA = {"_name_or_path": "somewhere/base", "torch_dtype": "float32", "transformers_version": "4.31.0.dev0",
         "use_cache": True, "gradient_checkpointing": False, "output_past": True, "num_labels": 3,
         "_num_labels": 3}  # fmt: skip
# Generation settings, which stood here too.
OLD_GENERATION = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3,
                  "max_length": 30, "task_specific_params": {"summarization": {"num_beams": 6, "max_length": 20}},
                  }  # fmt: skip
BERT = {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, "max_position_embeddings": 64, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "pad_token_id": 0,
        "classifier_dropout": None}  # fmt: skip
ROBERTA = {**BERT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "layer_norm_eps": 1e-5,
           "type_vocab_size": 1, "max_position_embeddings": 66}  # fmt: skip
GPT2 = {**EXTRA, "vocab_size": 37, "n_ctx": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
        "bos_token_id": 1, "eos_token_id": 2, "activation_function": "gelu_new", "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}  # fmt: skip
BART = {**EXTRA, "vocab_size": 37, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "num_hidden_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 28,
        "max_position_embeddings": 64, "activation_function": "gelu", "classif_dropout": 0.0, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "is_encoder_decoder": True,
        "add_bias_logits": False, "normalize_before": False, "normalize_embedding": True, "scale_embedding": False,
        "static_position_embeddings": False, "add_final_layer_norm": False, "encoder_layerdrop": 0.0}  # fmt: skip
T5 = {**EXTRA, "vocab_size": 37, "d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4,
      "relative_attention_num_buckets": 8, "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1, "n_positions": 512,
      "is_encoder_decoder": True, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1}
LLAMA = {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "hidden_act": "silu",
         "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pretraining_tp": 1, "rope_scaling": None,
         "attention_dropout": 0.0}  # fmt: skip
GEMMA = {**LLAMA, "head_dim": 8, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
         "sliding_window": 8, "query_pre_attn_scalar": 5, "rope_theta": 10000.0, "pad_token_id": 0,
         "cache_implementation": "hybrid"}  # fmt: skip
OLD: dict[str, dict] = {
    "bert": BERT,
    "ernie": {**BERT, "use_task_id": True, "task_type_vocab_size": 3, "task_id": 0},
    "bert-generation": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "roberta-prelayernorm": ROBERTA,
    "xlm-roberta-xl": ROBERTA,
    "data2vec-text": ROBERTA,
    "electra": {**BERT, "embedding_size": 12, "summary_activation": "gelu", "summary_type": "first",
                "generator_size": "0.25"},
    "megatron-bert": BERT,
    "rembert": {**BERT, "input_embedding_size": 12, "output_embedding_size": 20, "bos_token_id": 3,
                "eos_token_id": 4},
    "roformer": {**BERT, "embedding_size": None, "rotary_value": False, "eos_token_id": 2},
    "big_bird": {**BERT, "attention_type": "block_sparse", "block_size": 16, "num_random_blocks": 3,
                 "hidden_act": "gelu_new", "use_bias": True, "rescale_embeddings": False, "sep_token_id": 6},
    "longformer": {**ROBERTA, "attention_window": [8, 16], "attention_mode": "longformer",
                   "ignore_attention_mask": False, "sep_token_id": 2},
    "distilbert": {**EXTRA, "vocab_size": 37, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 24,
                   "max_position_embeddings": 64, "activation": "gelu", "sinusoidal_pos_embds": False,
                   "tie_weights_": True, "pad_token_id": 0},
    "albert": {**BERT, "num_hidden_layers": 3, "embedding_size": 12, "hidden_act": "gelu", "down_scale_factor": 1,
               "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0, "num_hidden_groups": 1,
               "inner_group_num": 1, "layers_to_keep": []},
    "mpnet": {**ROBERTA, "relative_attention_num_buckets": 32},
    "deberta": {**BERT, "pos_att_type": "C2P| p2c", "relative_attention": True, "max_relative_positions": -1,
                "position_biased_input": False, "type_vocab_size": 0, "pooler_dropout": 0, "layer_norm_eps": 1e-7,
                "pooler_hidden_act": "gelu", "pooler_hidden_size": 32},
    "deberta-v2": {**BERT, "pos_att_type": "p2c|c2p", "relative_attention": True, "max_relative_positions": -1,
                   "position_biased_input": False, "type_vocab_size": 0, "position_buckets": 8,
                   "norm_rel_ebd": "layer_norm", "share_att_key": True, "attention_head_size": 8},
    "modernbert": {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
                   "intermediate_size": 24, "max_position_embeddings": 64, "hidden_activation": "gelu",
                   "global_rope_theta": 80000.0, "local_rope_theta": 500.0, "global_attn_every_n_layers": 2,
                   "local_attention": 8, "position_embedding_type": "absolute", "pad_token_id": 0, "cls_token_id": 1,
                   "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "layer_norm_eps": 1e-5,
                   "norm_eps": 1e-5, "reference_compile": None, "deterministic_flash_attn": False},
    "nomic_bert": {**{k: v for k, v in BERT.items() if k != "position_embedding_type"}, "rope_theta": 500.0,
                   "rotary_emb_fraction": 1.0, "activation_function": "swiglu", "hidden_act": "silu"},
    "eurobert": {**LLAMA, "rope_theta": 250000, "num_key_value_heads": 4, "pad_token_id": 3, "mask_token_id": 4,
                 "clf_pooling": "late", "auto_map": {}},
    "gpt2": GPT2,
    "gpt-sw3": {**GPT2, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "n_inner": 24},
    "gpt_bigcode": {**GPT2, "multi_query": True, "attention_softmax_in_fp32": True, "n_inner": 24,
                    "activation_function": "gelu_pytorch_tanh", "inference_runner": 0, "validate_runner_input": True},
    "bart": {**BART, **OLD_GENERATION},
    "mbart": {**BART, "scale_embedding": True, "normalize_before": True, "add_final_layer_norm": True},
    "mvp": {**BART, "use_prompt": False},
    "plbart": BART,
    "marian": {**BART, "activation_function": "swish", "scale_embedding": True, "static_position_embeddings": True,
               "bad_words_ids": [[36]], "decoder_start_token_id": 1, "decoder_vocab_size": 37,
               "share_encoder_decoder_embeddings": True, "forced_eos_token_id": 2},
    "pegasus": {**BART, "activation_function": "relu", "scale_embedding": True, "pad_token_id": 0, "eos_token_id": 1,
                "decoder_start_token_id": 0, "length_penalty": 0.8, "num_beams": 8, "extra_pos_embeddings": 1},
    "blenderbot": {**BART, "layernorm_variant": "prelayernorm", "min_length": 20, "do_blenderbot_90_layernorm": True},
    "blenderbot-small": {**BART, "layernorm_variant": "xlm", "normalize_embedding": True},
    "trocr": {**{k: v for k, v in BART.items() if "encoder" not in k and k != "num_hidden_layers"},
              "hidden_size": 32, "num_hidden_layers": 2, "layernorm_embedding": True, "tie_word_embeddings": False,
              "use_learned_position_embeddings": True},
    "xglm": {**EXTRA, "vocab_size": 37, "d_model": 32, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4,
             "max_position_embeddings": 64, "activation_function": "gelu", "scale_embedding": True, "pad_token_id": 1,
             "bos_token_id": 0, "eos_token_id": 2, "layerdrop": 0.0, "init_std": 0.02},
    "t5": {**T5, "task_specific_params": {"summarization": {"prefix": "summarize: ", "num_beams": 4}}},
    "mt5": {**GATED, "tokenizer_class": "T5Tokenizer"},
    "umt5": {**GATED, "scalable_attention": True, "is_gated_act": True, "dense_act_fn": "gelu_new"},
    "t5gemma": {**EXTRA, "vocab_size": 37, "is_encoder_decoder": True, "dropout_rate": 0.0, "bos_token_id": 1,
                "pad_token_id": 0, "eos_token_id": 2,
                "encoder": {**GEMMA, "model_type": "t5_gemma_module", "rope_theta": 500.0, "is_encoder_decoder": True},
                "decoder": {**GEMMA, "model_type": "t5_gemma_module", "rope_theta": 5000.0, "is_decoder": True,
                            "num_hidden_layers": 3, "cross_attention_hidden_size": 32}},
    "opt": {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "ffn_dim": 24, "max_position_embeddings": 64, "activation_function": "relu", "activation_dropout": 0.0,
            "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2, "do_layer_norm_before": True, "prefix": "</s>",
            "_remove_final_layer_norm": False, "layerdrop": 0.0},
    "gpt_neox": {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "intermediate_size": 24, "max_position_embeddings": 64, "hidden_act": "gelu", "rotary_pct": 0.5,
                 "rotary_emb_base": 500, "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 0,
                 "tie_word_embeddings": False, "use_parallel_residual": True, "attention_probs_dropout_prob": 0},
    "llama": {**LLAMA, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False, "head_dim": 8,
              "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3",
                               "original_max_position_embeddings": 32}},
    "mistral": {**LLAMA, "rope_theta": 1000000.0, "sliding_window": 8, "head_dim": None},
    "smollm3": {**LLAMA, "num_hidden_layers": 4, "rope_theta": 5000000.0, "pad_token_id": 3,
                "no_rope_layer_interval": 4, "no_rope_layers": [1, 0, 1, 0], "use_sliding_window": False,
                "sliding_window": None, "max_window_layers": 28, "tie_word_embeddings": True,
                "layer_types": ["full_attention"] * 4},
    "qwen2": {**LLAMA, "num_hidden_layers": 3, "rope_theta": 1000000.0, "use_sliding_window": True,
              "sliding_window": 8, "max_window_layers": 1, "use_mrope": False},
    "qwen3": {**LLAMA, "head_dim": 6, "rope_theta": 1000000, "use_sliding_window": False, "sliding_window": None,
              "max_window_layers": 2, "attention_bias": False,
              "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "modernbert-decoder": {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 4,
                           "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 64,
                           "hidden_activation": "gelu", "global_rope_theta": 80000.0, "local_rope_theta": 500.0,
                           "global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0,
                           "cls_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
                           "norm_eps": 1e-5, "decoder_bias": True, "classifier_bias": False},
    "phi3": {**LLAMA, "rope_theta": 500.0, "partial_rotary_factor": 0.5, "pad_token_id": 0, "sliding_window": 8,
             "original_max_position_embeddings": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_bias": False},
    "olmo2": {**LLAMA, "rope_theta": 500000, "attention_bias": False, "pad_token_id": 0},
    "granite": {**LLAMA, "rope_theta": 10000000.0, "attention_multiplier": 0.25, "embedding_multiplier": 12.0,
                "residual_multiplier": 0.22, "logits_scaling": 8.0, "attention_bias": False, "mlp_bias": False},
    "gptj": {**GPT2, "rotary": True, "rotary_dim": 4, "n_inner": None, "gradient_checkpointing": False,
             "tie_word_embeddings": False, "scale_attn_weights": True},
    "gpt_neo": {**EXTRA, "vocab_size": 37, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
                "max_position_embeddings": 64, "attention_types": [[["global", "local"], 1]],
                "attention_layers": ["global", "local"], "activation_function": "gelu_new", "embed_dropout": 0,
                "resid_dropout": 0, "intermediate_size": None, "layer_norm_epsilon": 1e-5, "bos_token_id": 1,
                "eos_token_id": 2},
    "gemma": {**GEMMA, "hidden_act": "gelu", "hidden_activation": None},
    "gemma2": {**GEMMA, "num_hidden_layers": 3, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    "gemma3_text": {**GEMMA, "num_hidden_layers": 3, "rope_theta": 1000000, "rope_local_base_freq": 500,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 2},
}  # fmt: skip
# What else is found in files: (model_type, changes to the above; ... takes a field away).
VARIANTS = [
    ("bert", {"type_vocab_size": ..., "layer_norm_eps": ..., "hidden_act": ..., "pad_token_id": None}),
    ("gpt2", {"n_embd": ..., "n_layer": ..., "n_head": ..., "n_positions": ..., "hidden_size": 32,
              "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}),
    ("gpt2", {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 99, "n_inner": None}),
    ("gpt_bigcode", {"multi_query": False, "num_hidden_layers": 3}),
    ("bart", {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 16}),
    ("distilbert", {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 99}),
    ("roformer", {"embedding_size": ...}),
    ("roformer", {"embedding_size": 12}),
    ("opt", {"word_embed_proj_dim": None}),
    ("opt", {"word_embed_proj_dim": 32, "_remove_final_layer_norm": True}),
    ("xglm", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}),
    ("trocr", {"num_hidden_layers": ..., "hidden_size": ..., "decoder_layers": 3}),
    ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new", "is_gated_act": True}),
    ("t5", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "num_decoder_layers": None}),
    ("t5", {"num_hidden_layers": 1, "num_decoder_layers": 2, "head_dim": 4, "tie_word_embeddings": None}),
    ("umt5", {"tie_word_embeddings": True, "is_gated_act": ..., "dense_act_fn": ...}),
    ("mt5", {"num_decoder_layers": ...}),
    ("deberta", {"pos_att_type": ["p2c"], "max_relative_positions": 5, "position_biased_input": True}),
    ("deberta", {"relative_attention": False, "pos_att_type": None}),
    ("deberta-v2", {"norm_rel_ebd": "LAYER_NORM|none", "share_att_key": False, "position_buckets": -1}),
    ("modernbert", {"global_attn_every_n_layers": ..., "global_rope_theta": ..., "local_rope_theta": ...}),
    ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}, "sliding_window": 3}),
    ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7.0}}}),
    ("modernbert", {"layer_types": ["sliding_attention"] * 4, "rope_parameters": None}),
    ("nomic_bert", {"rope_theta": ..., "head_dim": None}),
    ("eurobert", {"rope_scaling": {"type": "linear", "factor": 4.0}, "num_key_value_heads": None}),
    ("gpt_neox", {"rotary_pct": ..., "rotary_emb_base": ..., "rope_theta": 7.0}),
    ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.25}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("llama", {"rope_scaling": None, "rope_theta": ...}),
    ("llama", {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
    ("llama", {"rope_scaling": None, "partial_rotary_factor": 0.5, "num_key_value_heads": None, "head_dim": None}),
    ("llama", {"rope_scaling": None, "sliding_window": 4, "use_sliding_window": True, "attention_bias": True}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16, "mscale": 1.5,
                                "mscale_all_dim": 2.0, "truncate": False}}),
    ("llama", {"attention_dropout": None, "rope_scaling": {"rope_type": "yarn", "factor": None,
                                                           "original_max_position_embeddings": 16}}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True, "mlp_bias": True}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "layer_types": ...}),
    ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2, "layer_types": None}),
    ("smollm3", {"no_rope_layers": ..., "no_rope_layer_interval": ...}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen2", {"sliding_window": ...}),
    ("qwen2", {"max_window_layers": ..., "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    ("qwen2", {"attention_bias": False, "mlp_bias": True, "head_dim": 6}),
    ("qwen3", {"head_dim": ..., "rope_scaling": ..., "rope_theta": ..., "tie_word_embeddings": True}),
    ("gemma", {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu"}),
    ("gemma", {"hidden_act": "relu", "hidden_activation": ..., "mlp_bias": True}),
    ("gemma2", {"hidden_act": "relu", "sliding_window_pattern": 3, "layer_types": None}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 300.0}),
    ("gemma3_text", {"sliding_window_pattern": ..., "rope_theta": ..., "rope_local_base_freq": ...}),
    ("gemma3_text", {"rope_scaling": None, "use_bidirectional_attention": True, "_sliding_window_pattern": 2}),
    ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_theta": 7.0}}}),
    ("longformer", {"attention_window": 8}),
    ("big_bird", {"attention_type": "original_full", "rescale_embeddings": True, "use_bias": False}),
    ("marian", {"decoder_vocab_size": None, "share_encoder_decoder_embeddings": ...}),
]  # fmt: skip
CLASSES = {"modernbert": "ModernBertForMaskedLM"}
QUICK = {"llama", "gemma3_text", "bart"}


def raw_config(model_type: str, changes=()) -> dict:
    config = {**OLD[model_type], "model_type": model_type, **dict(changes)}
    return {name: value for name, value in config.items() if value is not ...}


def write(directory, config) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))


def support(model_type):
    return next(s for s in families.families() if s.model_type == model_type)


def saved(directory, config, auto, **options):
    """Weights of the torch class beside a config.json that stays as it is, and the model that torch reads from both."""
    write(directory, config)
    torch.manual_seed(0)
    made = models.ready(auto.from_config(AutoConfig.from_pretrained(directory, **options)), 0)
    made.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    write(directory, config)
    model = auto.from_pretrained(directory, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Something to pair a side with."""
    path = tmp_path_factory.mktemp("small")
    torch_models.encoder("bert", num_hidden_layers=1).save_pretrained(path / "encoder")
    torch_models.decoder("bert", num_hidden_layers=1).save_pretrained(path / "decoder")
    return path


def tokens(seed: int):
    ids = np.random.default_rng(seed).integers(7, 36, (2, LENGTH)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, LENGTH - 5 :] = 0
    return ids, mask


def check_whole(directory, config):
    theirs = saved(directory, config, AutoModelForSeq2SeqLM)
    (source, mask), (target, _) = tokens(0), tokens(1)
    with torch.no_grad():
        reference = theirs(torch.tensor(source), torch.tensor(mask), decoder_input_ids=torch.tensor(target)).logits
    pair = from_pretrained(directory)
    ours = jax.jit(lambda p: pair.model.apply({"params": p}, source, mask, decoder_input_ids=target).logits)(
        pair.params
    )
    ladder.close(np.asarray(ours), reference.numpy(), 1e-5, "logits")
    return pair


def check_encoder(directory, config, small):
    theirs = saved(directory, config, AutoModel)
    ids, mask = tokens(0)
    with torch.no_grad():
        reference = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    pair = from_encoder_decoder_pretrained(directory, small / "decoder")
    ours = jax.jit(lambda p: pair.model.apply({"params": p}, ids, mask, method="encode"))(pair.params)
    ladder.close(np.asarray(ours)[mask == 1], reference[mask == 1], 1e-5, "states")
    return pair


def check_decoder(directory, config, small):
    write(directory, config)
    options = {"is_decoder": True} if hasattr(AutoConfig.from_pretrained(directory), "is_decoder") else {}
    theirs = saved(directory, config, AutoModelForCausalLM, **options)
    ids, _ = tokens(0)
    with torch.no_grad():
        reference = theirs(torch.tensor(ids)).logits.numpy()
    pair = from_encoder_decoder_pretrained(small / "encoder", directory)
    decoder = Transformer(dataclasses.replace(pair.config.decoder, cross_attention_size=None))
    params = ties.fill(pair.params, ties.aliases(pair.config))["decoder"]
    ours = jax.jit(lambda p: decoder.apply({"params": p}, method=lambda m: m.logits(m(ids)[0])))(params)
    ladder.close(np.asarray(ours)[..., :37], reference, 1e-5, "logits")
    return pair


@pytest.mark.parametrize(
    "model_type", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OLD]
)
def test_states_and_logits(model_type, small, tmp_path):
    """Torch's, on 40 tokens, by the same directory; and what is written again has the file's own fields."""
    there, config = support(model_type), raw_config(model_type)
    if there.seq2seq:
        pair = check_whole(tmp_path / "whole", config)
        save_pretrained(tmp_path / "again", pair)
        again = json.loads((tmp_path / "again" / "config.json").read_text())
        # Of T5's head the file decided.
        changed = ("architectures", "tie_word_embeddings", "scale_decoder_outputs")
        assert {k: v for k, v in again.items() if k not in changed} == {
            k: v for k, v in config.items() if k not in changed
        }
        return
    # Of two roles the default run has one: the settings are read by the same code.
    if there.encoder and (model_type not in QUICK or not there.decoder):
        check_encoder(tmp_path / "encoder", config, small)
    if there.decoder:
        pair = check_decoder(tmp_path / "decoder", config, small)
        save_pretrained(tmp_path / "again", pair)
        again = json.loads((tmp_path / "again" / "config.json").read_text())["decoder"]
        assert {k: again[k] for k in config if k not in ("is_decoder", "is_encoder_decoder")} == {
            k: v for k, v in config.items() if k not in ("is_decoder", "is_encoder_decoder")
        }


def settings(config, role):
    """Our settings; of T5's head the file decides whether it is tied, and so not here."""
    found = families.from_hf(config, role)
    return dataclasses.replace(found, tie_head=True) if families.family_of(config).with_tensors else found


CHANGES = [(model_type, {}) for model_type in OLD if model_type != "t5gemma"] + VARIANTS


@pytest.mark.parametrize(
    "model_type, changes", CHANGES, ids=lambda v: v if isinstance(v, str) else ",".join(v) or "as is"
)
def test_settings_are_those_of_the_class(model_type, changes, tmp_path):
    """The file gives the settings that torch's newest form of it gives."""
    config = raw_config(model_type, changes)
    write(tmp_path, config)
    read = AutoConfig.from_pretrained(tmp_path)
    newest = json.loads(json.dumps(read.to_dict(), default=str))
    if model_type == "modernbert":
        newest["local_attention"] = read.sliding_window * 2
        newest.pop("sliding_window", None)
    for role in families.ROLES:
        if getattr(support(model_type), role):
            assert settings(config, role) == settings({**newest, "model_type": model_type}, role)


def test_old_generation_settings(tmp_path):
    """They stand in config.json, under names of their own; task_specific_params are for pipelines."""
    config = raw_config("bart", {"force_bos_token_to_be_generated": True, "eos_token_id": 2, "forced_eos_token_id": 2})
    theirs = saved(tmp_path, config, AutoModelForSeq2SeqLM).generation_config
    ours = from_pretrained(tmp_path).generation_config
    names = ("forced_bos_token_id", "forced_eos_token_id", *OLD_GENERATION)
    for name in names[:-1]:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.forced_bos_token_id == 0 and ours.num_beams == 4
    write(tmp_path, {k: v for k, v in config.items() if k != "bos_token_id"})  # the class's own is 0
    assert from_pretrained(tmp_path).generation_config.forced_bos_token_id == 0


def test_every_supported_type_is_compared():
    """The README's column says which forms this module and test_families compare, and lacks no supported type."""
    halves = {"t5_gemma_module"}  # of t5gemma
    newest = {kind for kind, _ in models.CASES.values()} | halves | {"t5gemma2_text", "t5gemma2_decoder"}
    compared = {"4": set(OLD) | halves, "5": newest}
    said = {form: {t for t, forms in families.HUB_CONFIGS.items() if form in forms} for form in compared}
    assert said == compared
    assert set(families.BY_MODEL_TYPE) == set(families.HUB_CONFIGS)
