"""config.json with values that are not of their kind, without a model_type, with names of fields twice."""

import json
import re

import pytest

from seq2seq_jax import from_encoder_decoder_pretrained, from_pretrained, save_pretrained
from seq2seq_jax.families import registry
from seq2seq_jax.weights.hf_config import overridden
from tests.weights.checkpoints import BERT, make_pair, standalone

GPT2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
LLAMA = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
BART = {"model_type": "bart", "d_model": 8, "encoder_layers": 2, "decoder_layers": 1, "num_hidden_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip
WRONG = [
    (BERT, "hidden_size", "16", "hidden_size is '16'; give a whole number"),
    (BERT, "num_hidden_layers", 2.0, "num_hidden_layers is 2.0; give a whole number"),
    (BERT, "vocab_size", True, "vocab_size is True; give a whole number"),
    (BERT, "intermediate_size", None, "intermediate_size is null; give a whole number"),
    (BERT, "pad_token_id", "0", "pad_token_id is '0'; give a whole number"),
    (BERT, "eos_token_id", [1, 2.5], "eos_token_id is [1, 2.5]; give a whole number"),
    (BERT, "decoder_start_token_id", 1.5, "decoder_start_token_id is 1.5; give a whole number"),
    (BERT, "bos_token_id", [1], "bos_token_id is [1]; give a whole number"),
    (BERT, "layer_norm_eps", float("nan"), "layer_norm_eps is nan; give a number from 0 up"),
    (BERT, "layer_norm_eps", -1e-12, "layer_norm_eps is -1e-12; give a number from 0 up"),
    (BERT, "layer_norm_eps", "1e-12", "layer_norm_eps is '1e-12'; give a number from 0 up"),
    (BERT, "hidden_dropout_prob", None, "hidden_dropout_prob is null; give a number from 0 up"),
    (BERT, "tie_word_embeddings", "false", "tie_word_embeddings is 'false'; give true or false"),
    (BERT, "hidden_act", 3, "hidden_act is 3; give text"),
    (BERT, "hidden_act", "gelu_tanh", "activation 'gelu_tanh' is unknown: did you mean 'gelu_python_tanh'"),
    (BERT, "position_embedding_type", "relative_key", "position_embedding_type 'relative_key' is not built"),
    (BERT, "position_embedding_type", "relative_key_query", "position_embedding_type 'relative_key_query' is not"),
    (BERT, "position_embedding_type", "rotary", "position_embedding_type 'rotary' is not built"),
    (BERT, "per_layer_config", {"0": {"hidden_act": "relu"}}, "per_layer_config is not built"),
    (GPT2, "n_layer", "2", "n_layer is '2'; give a whole number"),
    (GPT2, "num_attention_heads", "2", "n_head is '2'; give a whole number"),
    (GPT2, "n_inner", 1.5, "n_inner is 1.5; give a whole number, or null"),
    (LLAMA, "rms_norm_eps", float("inf"), "rms_norm_eps is inf; give a number from 0 up"),
    (LLAMA, "rope_theta", "1e6", "rope_theta is '1e6'; give a number above 0"),
    (LLAMA, "rope_theta", None, "rope_theta is None; give a number above 0"),
    (LLAMA, "rope_theta", 0, "rope_theta is 0; give a number above 0"),
    (LLAMA, "rope_scaling", "linear", "rope_scaling is 'linear'; give a mapping"),
    (LLAMA, "rope_scaling", {"type": "linear"}, "rope_type 'linear' needs factor"),
    (LLAMA, "rope_scaling", {"type": "linear", "factor": "2"}, "factor is '2'; give a number above 0"),
    (LLAMA, "rope_scaling", {"rope_type": "llama_3", "factor": 2}, "'llama_3' is not supported: did you mean 'llama3'"),
    (LLAMA, "num_key_value_heads", "2", "num_key_value_heads is '2'; give a whole number, or null"),
    ({**LLAMA, "model_type": "gemma2"}, "final_logit_softcapping", "30", "final_logit_softcapping is '30'; give a num"),
    ({**LLAMA, "model_type": "smollm3"}, "no_rope_layers", [1], "no_rope_layers has 1 entries for 2 layers"),
    ({"model_type": "t5"}, "feed_forward_proj", "gate-gelu", "feed_forward_proj is 'gate-gelu'; give an activation"),
]  # fmt: skip


@pytest.mark.parametrize("config, field, value, message", WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_value(config, field, value, message):
    families = [role for role in registry.ROLES if role in registry.family_of(config).prefixes]
    for role in families:
        with pytest.raises(
            ValueError, match=re.escape(f"the {role}'s config.json") + ".*" + re.escape(message)
        ) as info:
            registry.from_hf({**config, field: value}, role)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "architectures, model_type",
    [(["BertForMaskedLM"], "bert"), (["BertForSequenceClassification"], "bert"), (["GPT2LMHeadModel"], "gpt2"),
     (["T5WithLMHeadModel"], "t5"), (["MarianMTModel"], "marian"), (["Gemma3ForCausalLM"], "gemma3_text"),
     (["XLMRobertaXLForMaskedLM"], "xlm-roberta-xl"), (["BertGenerationDecoder"], "bert-generation"),
     (["Unheard", "OPTForCausalLM"], "opt")],
)  # fmt: skip
def test_model_type_from_the_class(architectures, model_type):
    assert registry.with_model_type({"architectures": architectures})["model_type"] == model_type


@pytest.mark.parametrize(
    "architectures", [None, [], ["BertTokenizer"], ["UnheardForMaskedLM"], ["EncoderDecoderModel"]]
)
def test_no_model_type(architectures, tmp_path):
    decoder = standalone(tmp_path / "d", make_pair(BERT, BERT), "decoder", BERT)
    encoder = standalone(tmp_path / "e", make_pair(BERT, BERT), "encoder", BERT)
    config = {k: v for k, v in BERT.items() if k != "model_type"} | {"architectures": architectures}
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: .*no model_type.*\"model_type\": \"bert\"") as info:
        from_encoder_decoder_pretrained(encoder, decoder)
    assert str(encoder) in str(info.value) and (not architectures or architectures[0] in str(info.value))


def test_pair_without_model_types(tmp_path):
    """In the pair's config.json and in its sections; what is written has them."""
    pair = make_pair(BERT, BERT)
    save_pretrained(tmp_path, pair)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for section in (config, config["encoder"], config["decoder"]):
        del section["model_type"]
    config["encoder"]["architectures"], config["decoder"]["architectures"] = ["BertModel"], ["BertLMHeadModel"]
    file.write_text(json.dumps(config))
    again = from_pretrained(tmp_path)
    assert again.config == pair.config
    save_pretrained(tmp_path / "again", again)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert [written[role]["model_type"] for role in registry.ROLES] == ["bert", "bert"]
    del config["decoder"]["architectures"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: .*the decoder section has no model_type"):
        from_pretrained(tmp_path)


def test_a_caller_s_size_wins_over_every_name_of_it():
    """A file that names a size twice (n_layer and num_hidden_layers) takes the caller's under both."""
    hf, _ = overridden({**GPT2, "num_hidden_layers": 2}, "decoder", {"num_hidden_layers": 1}, 2)
    assert registry.from_hf(hf, "decoder").num_layers == 1 and hf["num_hidden_layers"] == hf["n_layer"] == 1
    hf, _ = overridden(BART, "encoder", {"num_hidden_layers": 1}, 2)
    assert registry.from_hf(hf, "encoder").num_layers == 1
    hf, _ = overridden({**BART, "decoder_layers": 2}, "decoder", {"num_hidden_layers": 1}, 2)
    assert registry.from_hf(hf, "decoder").num_layers == 1 and hf["encoder_layers"] == hf["num_hidden_layers"] == 2
