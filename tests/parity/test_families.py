"""Every family against the torch classes: encoders alone, decoders alone, pairs, whole sequence-to-sequence models.

The default run covers a spread of the families' features; `pytest -m slow` all of them.
"""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, EncoderDecoderModel  # noqa: E402

from seq2seq_jax.families import registry as families  # noqa: E402
from seq2seq_jax.models import ties  # noqa: E402
from seq2seq_jax.models.transformer import Transformer  # noqa: E402
from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.saving import save_decoder, save_encoder, save_pretrained  # noqa: E402
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import family_models as models  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
QUICK_ENCODERS = {"albert, groups", "deberta-v3", "modernbert", "marian"}
QUICK_DECODERS = {"roberta", "umt5", "gemma3"}
QUICK_PAIRS = {("bert", "llama")}
QUICK_WHOLE = {"mbart"}
VOCABULARIES = (37, 37)


def spread(names, quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def small_decoder(tmp_path_factory):
    """Something to pair an encoder with."""
    path = tmp_path_factory.mktemp("decoder")
    torch_models.decoder("bert", num_hidden_layers=1).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder")
    torch_models.encoder("bert", num_hidden_layers=1).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", spread(models.ENCODERS, QUICK_ENCODERS))
def test_encoder_alone(name, small_decoder, tmp_path):
    """Hidden states of the tokens, padding on either side."""
    half, whole = models.encoder(name)
    whole.save_pretrained(tmp_path)
    batch = ladder.random_batch(VOCABULARIES, source=9)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        theirs = half(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    pair = from_encoder_decoder_pretrained(tmp_path, small_decoder)
    encode = jax.jit(lambda params: pair.model.apply({"params": params}, ids, mask, method="encode"))
    ours = np.asarray(encode(pair.params))
    ladder.close(ours[mask == 1], theirs[mask == 1], 1e-5, "hidden states")


@pytest.mark.parametrize("name", spread(models.DECODERS, QUICK_DECODERS))
def test_decoder_alone(name, small_encoder, tmp_path):
    """Logits of the causal LM; a pair that begins with cross-attention of zero is that LM."""
    lm = models.decoder(name)
    lm.save_pretrained(tmp_path)
    ids = ladder.random_batch(VOCABULARIES, target=9)["labels"]
    ids = np.where(ids < 0, 5, ids)
    pair = from_encoder_decoder_pretrained(small_encoder, tmp_path)
    c = pair.config.decoder
    with torch.no_grad():
        if name.split(",")[0] in ("t5", "mt5", "umt5"):
            states = torch.randn(3, 4, c.hidden_size, generator=torch.Generator().manual_seed(0))
            theirs = lm(encoder_outputs=(states,), decoder_input_ids=torch.tensor(ids)).logits.numpy()
            more, alone = {"encoder_states": states.numpy()}, c
        else:
            theirs = lm(torch.tensor(ids)).logits.numpy()
            more, alone = {}, dataclasses.replace(c, cross_attention_size=None)
    params = ties.fill(pair.params, ties.aliases(pair.config))["decoder"]
    decoder = Transformer(alone)

    def logits(module):
        states, _ = module(ids, **more)
        return module.logits(states)

    ours = jax.jit(lambda p: decoder.apply({"params": p}, method=logits))(params)
    ladder.close(np.asarray(ours)[..., : c.vocab_size], theirs, 1e-5, "logits")
    if not more and c.norm_position != "post" and name in models.REFERENCED:
        source = ladder.random_batch((37, 37))["input_ids"]
        joined = pair.model.apply({"params": pair.params}, source, decoder_input_ids=ids)
        ladder.close(joined.logits, theirs, 1e-5, "logits of the pair that begins as the LM")


def climb(reference, directory):
    """All rungs of a pair; what torch gives, and what comes back from disk."""
    pair = from_pretrained(directory)
    results = torch_models.results(reference, ladder.random_batch(VOCABULARIES))
    types = (reference.encoder.config.model_type, reference.decoder.config.model_type)
    for kind in ("grad:", "adamw:"):
        tensors = {n.removeprefix(kind): results.pop(n) for n in list(results) if n.startswith(kind)}
        filed = models.as_filed(tensors, *types, concatenate=np.concatenate)
        results |= {f"{kind}{name}": value for name, value in filed.items()}
    ladder.check_forward(pair, results)
    ladder.check_gradients(pair, results)
    ladder.check_tokens(pair, results)
    ladder.check_cache(pair, ladder.batch_of(results))
    saved = directory / "again"
    save_pretrained(saved, pair)
    before, after = load_file(directory / "model.safetensors"), load_file(saved / "model.safetensors")
    if reference.encoder.config.model_type in models.T5_ENCODERS and "encoder.shared.weight" in before:
        before["encoder.encoder.embed_tokens.weight"] = before.pop("encoder.shared.weight")
    for name, tensor in after.items():
        np.testing.assert_array_equal(before[name], tensor, err_msg=name)
    unsaved = set(before) - set(after)
    assert all(status in ("tied", "ignored", "other part") for status in statuses(pair.report, unsaved)), unsaved
    return pair


def statuses(report, names):
    return [entry.status for entry in report.entries if entry.name in names]


def contiguous(module, arguments, output):
    output.last_hidden_state = output.last_hidden_state.contiguous()


def torch_pair(encoder, decoder):
    model = EncoderDecoderModel(encoder=models.encoder(encoder)[0], decoder=models.decoder(decoder))
    model = models.ready(model, 5)
    if encoder == "longformer":  # it returns a slice, of which GPT-2's cross-attention cannot take a view
        model.encoder.register_forward_hook(contiguous)
    model.config.decoder_start_token_id, model.config.pad_token_id = torch_models.START, torch_models.PAD
    model.generation_config.decoder_start_token_id = torch_models.START
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = torch_models.PAD, torch_models.EOS
    return model


PAIRS = [(e, d) for e in models.ENCODERS for d in ("bert", "gpt2", "llama")]
PAIRS += [(e, d) for d in models.DECODERS if d not in models.FORMULA for e in ("bert", "modernbert", "t5")]
PAIRS = list(dict.fromkeys(PAIRS))


@pytest.mark.parametrize("name", ["gemma3, bidirectional", "qwen3"])
def test_embedding_model_alone(name, small_decoder, tmp_path):
    """EmbeddingGemma and Qwen3-Embedding by sentence-transformers: a bare model, other parts in folders."""
    half, whole = models.encoder(name)
    whole.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    for folder in ("1_Pooling", "2_Dense"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"in_features": 16, "out_features": 8}')
    save_file({"linear.weight": np.ones((8, 16), np.float32)}, tmp_path / "2_Dense" / "model.safetensors")
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]'
    )
    batch = ladder.random_batch(VOCABULARIES, source=9)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        theirs = half(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    pair = from_encoder_decoder_pretrained(tmp_path, small_decoder)
    ours = np.asarray(pair.model.apply({"params": pair.params}, ids, mask, method="encode"))
    ladder.close(ours[mask == 1], theirs[mask == 1], 1e-5, "hidden states")
    assert pair.config.encoder.causal == (name == "qwen3")
    assert {entry.status for entry in pair.report.entries if entry.side == "encoder"} == {"copied"}


@pytest.mark.parametrize("names", spread(PAIRS, QUICK_PAIRS), ids="-".join)
def test_pair(names, tmp_path):
    encoder, decoder = names
    if decoder in models.REFERENCED:
        reference = models.Reference(models.encoder(encoder)[0], models.decoder(decoder)).eval()
    else:
        reference = torch_pair(encoder, decoder)
    reference.save_pretrained(tmp_path)
    climb(reference, tmp_path)


@pytest.mark.slow
def test_cross_attention_in_every_second_layer(tmp_path):
    reference = models.Reference(models.encoder("bert")[0], models.decoder("llama"), every=2).eval()
    reference.save_pretrained(tmp_path, cross_attention_every=2)
    pair = climb(reference, tmp_path)
    assert [pair.config.decoder.layer(i).cross_attention for i in range(2)] == [False, True]


def test_causal_encoder_turned_bidirectional(small_decoder, tmp_path):
    """torch's LLaMA with a mask that hides nothing but padding."""
    half, whole = models.encoder("llama")
    whole.save_pretrained(tmp_path)
    batch = ladder.random_batch(VOCABULARIES)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    hidden = torch.zeros(3, 1, 7, 7).masked_fill(~torch.tensor(mask).bool()[:, None, None, :], -1e30)
    with torch.no_grad():
        theirs = half(torch.tensor(ids), attention_mask=hidden).last_hidden_state.numpy()
    pair = from_encoder_decoder_pretrained(tmp_path, small_decoder, encoder_use_bidirectional_attention=True)
    ours = np.asarray(pair.model.apply({"params": pair.params}, ids, mask, method="encode"))
    ladder.close(ours[mask == 1], theirs[mask == 1], 1e-5, "hidden states")


@pytest.mark.parametrize("name", spread(models.WHOLE, QUICK_WHOLE))
def test_whole_model(name, tmp_path):
    """A sequence-to-sequence model of its own class: all rungs, and torch reloads what is written."""
    torch.manual_seed(0)
    model = models.ready(AutoModelForSeq2SeqLM.from_config(models.config_of(name)), 0)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.copy_(torch.randn(1, 37, generator=torch.Generator().manual_seed(1)))
    for field, value in (("decoder_start_token_id", 1), ("pad_token_id", 0), ("eos_token_id", 2)):
        if field == "decoder_start_token_id" and "t5gemma" in name:
            continue  # its first token is the decoder's bos_token_id
        setattr(model.config, field, value)
        setattr(model.generation_config, field, value)
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(tmp_path)
    pair = from_pretrained(tmp_path)
    results = torch_models.results(model, ladder.random_batch(VOCABULARIES))
    results = {name.replace(".text_model.", "."): value for name, value in results.items()}  # as T5Gemma 2's files are
    ladder.check_forward(pair, results)
    ladder.check_gradients(pair, results)
    ladder.check_tokens(pair, results)
    ladder.check_cache(pair, ladder.batch_of(results))
    save_pretrained(tmp_path / "again", pair)
    before, after = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert set(before) == set(after)
    for key, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[key], err_msg=key)
    again = type(model).from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        logits = again(**{k: torch.tensor(v) for k, v in ladder.batch_of(results).items()}).logits
    ladder.close(logits.numpy(), results["logits"], 2e-6, "reloaded logits")


@pytest.mark.slow
def test_both_halves_of_t5gemma2(tmp_path):
    """As encoder and decoder of a new pair they are the whole model; its eyes are in the pair's file still."""
    torch.manual_seed(0)
    models.ready(AutoModelForSeq2SeqLM.from_config(models.config_of("t5gemma2")), 0).save_pretrained(tmp_path)
    whole, pair = from_pretrained(tmp_path), from_encoder_decoder_pretrained(tmp_path, tmp_path)
    batch = ladder.random_batch(VOCABULARIES)
    batch = {"decoder_input_ids": batch["input_ids"], **{k: batch[k] for k in ("input_ids", "attention_mask")}}
    expected, found = (p.model.apply({"params": p.params}, **batch).logits for p in (whole, pair))
    ladder.close(found, expected, 1e-5, "logits")
    save_pretrained(tmp_path / "pair", pair)
    again = from_pretrained(tmp_path / "pair")
    ladder.close(again.model.apply({"params": again.params}, **batch).logits, expected, 1e-5, "logits")
    assert again.passthrough.keys() == pair.passthrough.keys() and any("vision_tower" in n for n in pair.passthrough)


BARE = ["modernbert-decoder", "phi3", "olmo2", "granite", "gptj", "gpt_neo"]


@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", *BARE))])
def test_bare_decoder_returns_to_its_class(name, small_encoder, tmp_path):
    """Trained or not, the decoder alone is torch's causal LM again."""
    lm = models.decoder(name)
    lm.save_pretrained(tmp_path / "lm")
    pair = from_encoder_decoder_pretrained(small_encoder, tmp_path / "lm", cross_attention_init="normal")
    save_decoder(tmp_path / "again", pair)
    before, after = (
        load_file(tmp_path / "lm" / "model.safetensors"),
        load_file(tmp_path / "again" / "model.safetensors"),
    )
    assert {k: v.tobytes() for k, v in before.items()} == {k: v.tobytes() for k, v in after.items()}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    ids = torch.tensor(ladder.random_batch(VOCABULARIES)["input_ids"])
    with torch.no_grad():
        ladder.close(again(ids).logits.numpy(), lm(ids).logits.numpy(), 1e-6, "reloaded logits")


@pytest.mark.parametrize(
    "name",
    spread(["bert", "roberta", "modernbert", "gpt2", "t5, gated", "umt5", "opt", "llama"], {"bert", "t5, gated"}),
)
def test_encoder_returns_to_its_class(name, small_decoder, tmp_path):
    """An encoder that was not trained is written as it was, with what the pair does not read, and torch loads it."""
    whole = models.encoder(name)[1]
    kind = models.T5_ENCODERS.get(whole.config.model_type, transformers.AutoModel)
    whole.save_pretrained(tmp_path / "encoder")
    pair = from_encoder_decoder_pretrained(tmp_path / "encoder", small_decoder)
    save_encoder(tmp_path / "again", pair)
    before, after = (load_file(tmp_path / part / "model.safetensors") for part in ("encoder", "again"))
    assert {k: v.tobytes() for k, v in before.items()} == {k: v.tobytes() for k, v in after.items()}
    again, info = kind.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor(ladder.random_batch(VOCABULARIES)["input_ids"])
    with torch.no_grad():
        states = [model.eval()(ids).last_hidden_state for model in (again, whole)]
    assert torch.equal(*states)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_of_a_whole_model(name, tmp_path):
    whole = models.ready(AutoModelForSeq2SeqLM.from_config(models.config_of(name)), 0)
    whole.config.decoder_start_token_id = 1
    whole.save_pretrained(tmp_path / "whole")
    pair = from_pretrained(tmp_path / "whole")
    if name == "bart":
        with pytest.raises(ValueError, match=r"bart's encoder alone is not written.*save_pretrained"):
            save_encoder(tmp_path / "again", pair)
        return
    save_encoder(tmp_path / "again", pair)
    again = transformers.T5EncoderModel.from_pretrained(tmp_path / "again").eval()
    ids = torch.tensor(ladder.random_batch(VOCABULARIES)["input_ids"])
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, whole.eval().encoder(ids).last_hidden_state)


@pytest.mark.parametrize("model_type", families.BY_MODEL_TYPE)
def test_defaults_are_the_torch_class_s(model_type):
    if model_type == "gpt-sw3":
        return  # torch's config class calls itself gpt2
    config = models.CONFIG_MAPPING[model_type]().to_dict()
    config = config["decoder"] if model_type in ("t5gemma", "t5gemma2") else config
    for name, value in families.BY_MODEL_TYPE[model_type].defaults[model_type].items():
        theirs = config.get(name)
        if name in ("num_key_value_heads", "decoder_vocab_size") and value is None:
            continue  # as many as there are heads
        if name in ("embedding_size", "word_embed_proj_dim") and value is None:
            value = config["hidden_size"]
        if name not in config and name in ("scale_attn_by_inverse_layer_idx", "share_att_key", "norm_rel_ebd",
                                           "position_buckets", "dropout_rate", "eoi_token_index"):  # fmt: skip
            continue  # the class that reads it has this default, or sets it
        assert theirs == value, (name, theirs, value)


def test_unsupported_roles_and_types():
    with pytest.raises(ValueError, match="model_type 'distilbert' does not serve as decoder; these do: bert, "):
        families.from_hf({"model_type": "distilbert"}, "decoder")
    with pytest.raises(ValueError, match=r"model_type 'lama' is not supported: .*'llama'"):
        families.from_hf({"model_type": "lama"}, "decoder")


def test_big_bird_refuses_what_would_be_sparse(small_decoder, tmp_path):
    _, whole = models.encoder("big_bird")
    whole.config.attention_type, whole.config.block_size, whole.config.num_random_blocks = "block_sparse", 1, 1
    whole.save_pretrained(tmp_path)
    ids = ladder.random_batch(VOCABULARIES, source=9)["input_ids"]
    pair = from_encoder_decoder_pretrained(tmp_path, small_decoder)
    message = r"a sequence of 9 tokens is longer than 7: .*encoder_attention_type='original_full'"
    with pytest.raises(ValueError, match=message):
        pair.model.apply({"params": pair.params}, ids, method="encode")
    pair = from_encoder_decoder_pretrained(tmp_path, small_decoder, encoder_attention_type="original_full")
    assert pair.model.apply({"params": pair.params}, ids, method="encode").shape == (3, 9, 16)
