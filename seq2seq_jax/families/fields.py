"""Which fields a caller may give in a config: a misspelt one is refused, with the nearest name.

A config.json file is read whatever fields it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seq2seq_jax.config import nearest
from seq2seq_jax.config.generation_files import NAMES, WITHOUT_OUTPUT
from seq2seq_jax.families.rules import Family

# Accepted for every family, under these names.
COMMON = (
    "model_type", "is_decoder", "add_cross_attention", "num_hidden_layers", "num_attention_heads", "hidden_size",
    "intermediate_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache",
)  # fmt: skip
# What torch's classes do not have.
OWN = {
    "encoder": ("use_bidirectional_attention",),
    "decoder": ("cross_attention_every", "cross_attention_hidden_size"),
}
# Generation settings, which older config.json files hold.
GENERATION = frozenset((*NAMES, *WITHOUT_OUTPUT))
# What a family reads where it is there; its class has no default for it.
OPTIONAL = (
    "attention_bias", "block_size", "conv_kernel_size", "decoder", "decoder_bias", "decoder_vocab_size",
    "dense_act_fn", "embedding_size", "encoder", "eoi_token_index", "global_attn_every_n_layers", "head_dim",
    "is_gated_act", "layer_types", "max_window_layers", "mlp_bias", "no_rope_layers", "num_decoder_layers",
    "num_key_value_heads", "original_max_position_embeddings", "per_layer_config", "position_embedding_type",
    "rope_parameters", "rope_scaling", "rope_theta", "scale_attn_by_inverse_layer_idx", "scale_decoder_outputs",
    "share_encoder_decoder_embeddings", "sliding_window", "sliding_window_pattern", "talking_head",
    "tie_word_embeddings", "use_prompt", "use_sliding_window",
)  # fmt: skip
# Fields of torch's config classes, of transformers 4 and 5, on which no output here depends: task heads, initial
# values of torch's own, how torch computes, what it returns, and what a file says about itself.
WITHOUT_EFFECT = (
    "architectures", "attention_layers", "attention_softmax_in_fp32", "auto_map", "chunk_size_feed_forward",
    "classif_dropout", "classifier_activation", "classifier_bias", "classifier_dropout", "classifier_dropout_prob",
    "classifier_dropout_rate", "classifier_pooling", "cls_token_id", "decoder_layerdrop", "deterministic_flash_attn",
    "directionality", "dtype", "encoder_layerdrop", "finetuning_task", "gradient_checkpointing", "id2label",
    "image_token_index", "initializer_cutoff_factor", "initializer_factor", "is_encoder_decoder", "label2id",
    "layerdrop", "legacy", "mask_token_id", "n_ctx", "num_labels", "onnx_export", "pooler_dropout", "pooler_fc_size",
    "pooler_hidden_act", "pooler_hidden_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "prefix", "pretraining_tp", "problem_type", "prompt_length",
    "prompt_mid_dim", "pruned_heads", "qa_dropout", "reorder_and_upcast_attn", "return_dict",
    "scale_attention_softmax_in_fp32", "sep_token_id", "seq_classif_dropout", "sinusoidal_pos_embds",
    "sparse_pred_ignore_index", "sparse_prediction", "summary_activation", "summary_first_dropout",
    "summary_last_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "task_specific_params",
    "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript", "use_bfloat16",
    "use_bidirectional_attention",
)  # fmt: skip


def known_fields(family: Family, model_type: str, role: str) -> set[str]:
    """Names of the fields that change something in a config of `model_type`."""
    renamed = {name for name in (*family.renamed, *family.renamed.get(role, {})) if name not in ("encoder", "decoder")}
    return {*family.defaults[model_type], *family.aliases_of(model_type), *renamed, *COMMON, *OWN[role], *OPTIONAL}


def check_config(hf: Mapping[str, Any], family: Family, role: str) -> None:
    """A ValueError for the first name in the content of a config.json that its class does not have."""
    known = known_fields(family, hf["model_type"], role)
    for name in hf:
        if not (name in known or name in WITHOUT_EFFECT or name in GENERATION or name.startswith("_")):
            raise ValueError(
                f"{role}_config: {name} is no field of a {hf['model_type']} config: {nearest(name, known)}; a"
                " config.json with fields of its own can be given by its path"
            )
