"""Tiny random torch checkpoints with awkward shapes: odd vocabularies, widths that differ, biases that are not zero."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import transformers
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartModel,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

from tests import ladder

warnings.filterwarnings("ignore", category=FutureWarning)
transformers.logging.set_verbosity_error()

START, PAD, EOS = 1, 0, 2


def bert_config(**changes):
    sizes = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
    return BertConfig(**{**sizes, "intermediate_size": 24, "max_position_embeddings": 24, "eos_token_id": 2, **changes})


def gpt2_config(**changes):
    sizes = {"vocab_size": 41, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 3}
    return GPT2Config(**{**sizes, "bos_token_id": 1, "eos_token_id": 2, **changes})


def bart_config(**changes):
    sizes = {"vocab_size": 43, "d_model": 20, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 5}
    more = {"decoder_attention_heads": 4, "encoder_ffn_dim": 28, "decoder_ffn_dim": 36, "max_position_embeddings": 22}
    return BartConfig(
        **{**sizes, **more, "scale_embedding": True, "pad_token_id": 0, "forced_eos_token_id": None, **changes}
    )


def encoder(kind: str, **changes):
    if kind == "bert":
        return BertModel(bert_config(**changes))
    if kind == "gpt2":
        return GPT2Model(gpt2_config(**changes))
    return BartModel(bart_config(**changes)).get_encoder()


def decoder(kind: str, **changes):
    if kind == "bert":
        return BertLMHeadModel(bert_config(is_decoder=True, add_cross_attention=True, vocab_size=39, **changes))
    if kind == "gpt2":
        return GPT2LMHeadModel(gpt2_config(add_cross_attention=True, **changes))
    return BartForCausalLM(bart_config(add_cross_attention=True, **changes))


def randomise(model, seed: int, scale: float = 0.15):
    """Every parameter away from its initial value, so that a forgotten bias or norm shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dict.fromkeys(p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def pair(encoder_kind: str, decoder_kind: str, *, seed: int = 0, encoder_changes=None, decoder_changes=None):
    """A torch EncoderDecoderModel in evaluation mode, with start, pad and end tokens set."""
    torch.manual_seed(seed)
    model = EncoderDecoderModel(
        encoder=encoder(encoder_kind, **(encoder_changes or {})),
        decoder=decoder(decoder_kind, **(decoder_changes or {})),
    )
    randomise(model, seed).eval()
    model.config.decoder_start_token_id, model.config.pad_token_id = START, PAD
    model.generation_config.decoder_start_token_id = START
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, EOS
    return model


def results(model, batch) -> dict[str, np.ndarray]:
    """What the ladder compares, from a torch pair and a batch of numpy arrays."""
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    out = {name: np.asarray(value) for name, value in batch.items()}
    model.zero_grad()
    output = model(**tensors)
    output.loss.backward()
    out["logits"], out["loss"] = output.logits.detach().numpy(), output.loss.detach().numpy()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            out[f"grad:{name}"] = parameter.grad.numpy().copy()
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    common = {"max_length": ladder.MAX_LENGTH, "return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        out["greedy"] = model.generate(**inputs, **common).sequences.numpy()
        beam = model.generate(**inputs, **common, **ladder.BEAM)
        out["beam"], out["beam_scores"] = beam.sequences.numpy(), beam.sequences_scores.numpy()
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        a = ladder.ADAMW
        torch.optim.AdamW(
            model.parameters(), a["learning_rate"], (a["b1"], a["b2"]), a["eps"], weight_decay=a["weight_decay"]
        ).step()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                out[f"adamw:{name}"] = parameter.detach().numpy().copy()
            parameter.copy_(before[name])
    return out
