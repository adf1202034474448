"""What a forward pass may be given in place of ids, start tokens that are pads, and float16, against torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, EncoderDecoderModel  # noqa: E402
from transformers.modeling_outputs import BaseModelOutput  # noqa: E402

from seq2seq_jax.families.registry import from_hf  # noqa: E402
from seq2seq_jax.pretrained.loading import from_pretrained  # noqa: E402
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained  # noqa: E402
from tests import ladder  # noqa: E402
from tests.parity import family_models as models  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
VOCABULARIES = (37, 37)
BATCH = ladder.random_batch(VOCABULARIES)
IDS, MASK = BATCH["input_ids"], BATCH["attention_mask"]


def quick(names, chosen):
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


def torch_pair(encoder, decoder, *, pad=0, start=1):
    model = models.ready(EncoderDecoderModel(encoder=models.encoder(encoder)[0], decoder=models.decoder(decoder)), 5)
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = start, pad, 2
    return model


# --- start tokens that are the pad token


def start_is_pad(name, directory):
    """Writes a pair; returns torch's logits of (source, mask, decoder ids, decoder mask), and the pad token."""
    pad = models.config_of(name).pad_token_id or 0
    if name in models.REFERENCED:
        reference = models.Reference(models.encoder("bert")[0], models.decoder(name)).eval()

        def theirs(ids, mask, decoder_ids, decoder_mask):
            reference.encode(ids, mask)
            return reference.decoder(decoder_ids, attention_mask=decoder_mask).logits
    else:
        reference = torch_pair("bert", name, pad=pad, start=pad)

        def theirs(ids, mask, decoder_ids, decoder_mask):
            given = {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
            return reference(input_ids=ids, attention_mask=mask, **given).logits

    reference.save_pretrained(directory)
    return theirs, pad


@pytest.mark.parametrize("name", quick(["bert", "gpt2", "roberta", "opt", "llama"], ("roberta",)))
def test_start_that_is_the_pad_token_is_seen(name, tmp_path):
    """As decoding sees it, packed too; as torch where it is told so, not as torch's own mask."""
    theirs, pad = start_is_pad(name, tmp_path)
    pair = from_pretrained(tmp_path)
    config = dataclasses.replace(pair.config, decoder_start_token_id=pad, pad_token_id=pad)
    model = pair.model.clone(config=config)
    labels = np.random.default_rng(3).integers(4, 37, (3, 5))
    labels[1, 3:] = -100
    shifted = np.concatenate([np.full((3, 1), pad), labels[:, :-1]], axis=1)
    shifted = np.where(shifted == -100, pad, shifted)
    shown = (shifted != pad) | (np.arange(5) == 0)
    ours = jax.jit(lambda **given: model.apply({"params": pair.params}, IDS, MASK, **given).logits)
    logits = ours(labels=labels)
    with torch.no_grad():
        given = [torch.tensor(a).long() for a in (IDS, MASK, shifted)]
        seen, hidden = (theirs(*given, torch.tensor(m).long()).numpy() for m in (shown, shifted != pad))
    real = labels != -100
    ladder.close(np.asarray(logits)[real], seen[real], 1e-5, "logits")
    assert np.abs(seen[real] - hidden[real]).max() > 1e-2, "the start token makes no difference"
    free = ours(decoder_input_ids=shifted)
    ladder.close(np.asarray(logits)[real], np.asarray(free)[real], 1e-6, "logits of decoder_input_ids")

    decoding, variables = model.for_decoding(), {"params": model.decoding_params(pair.params)}

    @jax.jit
    def by_token(tokens):
        states = decoding.apply(variables, IDS, MASK, method="encode")
        cache = decoding.apply(variables, states, MASK, 1, 5, method="init_cache")
        step = lambda cache, now: decoding.apply(variables, now[:, None, None], cache, method="decode_step")[::-1]
        return jax.lax.scan(step, cache, tokens.T)[1]

    steps = np.moveaxis(np.asarray(by_token(jnp.asarray(shifted)))[:, :, 0], 0, 1)[..., :37]
    ladder.close(steps[real], np.asarray(logits)[real], 1e-5, "logits of decoding")

    lengths = [(7, 5), (5, 3)]  # rows 0 and 1 share a row
    packs = lambda side: np.concatenate([np.full(n[side], i + 1) for i, n in enumerate(lengths)])[None]
    cut = lambda a, side: np.concatenate([a[i, : n[side]] for i, n in enumerate(lengths)])[None]
    packed = {"encoder_pack_ids": packs(0), "decoder_pack_ids": packs(1), "labels": cut(labels, 1)}
    together = model.apply({"params": pair.params}, cut(IDS, 0), **packed).logits
    ladder.close(together, cut(np.asarray(logits), 1), 1e-5, "packed logits")


# --- states and embeddings in place of ids


@pytest.mark.parametrize("name", quick(models.ENCODERS, ("roberta",)))
def test_encoder_embeddings(name, tmp_path):
    half, whole = models.encoder(name)
    whole.save_pretrained(tmp_path / "encoder")
    torch_models.decoder("bert", num_hidden_layers=1).save_pretrained(tmp_path / "decoder")
    pair = from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    width = pair.config.encoder.embedding_size
    embeds = np.random.default_rng(4).normal(size=(*IDS.shape, width)).astype(np.float32)
    with torch.no_grad():
        given = {"inputs_embeds": torch.tensor(embeds), "attention_mask": torch.tensor(MASK)}
        theirs = half(**given).last_hidden_state.numpy()
    encode = jax.jit(lambda params: pair.model.apply({"params": params}, None, MASK, inputs_embeds=embeds,
                                                     method="encode"))  # fmt: skip
    ours = np.asarray(encode(pair.params))
    ladder.close(ours[MASK == 1], theirs[MASK == 1], 1e-5, "hidden states")


@pytest.mark.parametrize("name", quick(models.NATIVE, ("pegasus",)))
def test_states_and_decoder_embeddings(name, tmp_path):
    """torch's EncoderDecoderModel with encoder_outputs and decoder_inputs_embeds; both generate from states."""
    model = torch_pair("bert", name)
    model.generation_config.encoder_no_repeat_ngram_size = None  # Blenderbot's, which reads the source's tokens
    model.save_pretrained(tmp_path)
    pair = from_pretrained(tmp_path)
    draw = np.random.default_rng(5)
    states = draw.normal(size=(*IDS.shape, 16)).astype(np.float32)
    embeds = draw.normal(size=(3, 5, pair.config.decoder.embedding_size)).astype(np.float32)
    mask = torch.tensor(MASK)
    with torch.no_grad():
        outputs = (torch.tensor(states),)
        given = {"attention_mask": mask, "decoder_inputs_embeds": torch.tensor(embeds)}
        theirs = model(encoder_outputs=outputs, **given).logits.numpy()
        outputs = lambda: BaseModelOutput(last_hidden_state=torch.tensor(states))  # generate repeats them in place
        written = [
            model.generate(encoder_outputs=outputs(), attention_mask=mask, max_length=8, num_beams=n).numpy()
            for n in (1, 3)
        ]
    run = jax.jit(lambda params: pair.model.apply({"params": params}, None, MASK, encoder_outputs=(states,),
                                                  decoder_inputs_embeds=embeds).logits)  # fmt: skip
    ladder.close(run(pair.params), theirs, 1e-5, "logits")
    for n, sequences in zip((1, 3), written):
        ours = pair.generate(encoder_outputs=outputs(), attention_mask=MASK, max_length=8, num_beams=n)
        expected = ladder.until_end(sequences, (2,), 0)
        np.testing.assert_array_equal(np.asarray(ours.sequences), expected)


# --- float16


def overflowing(name, tmp_path):
    """A model whose MLPs overflow float16, and its directory."""
    torch.manual_seed(0)
    model = models.ready(AutoModelForSeq2SeqLM.from_config(models.config_of(name)), 0)
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if name in ("pegasus", "mbart") and ("encoder.layers" in parameter and "fc2.weight" in parameter):
                value.mul_(6.5e4)  # the states, not the kernels
            if "encoder.block" in parameter and ".wo." in parameter:
                value.mul_(1e5)
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("name", quick(["t5", "t5, gated", "mt5", "umt5", "pegasus", "mbart"], ("t5, gated",)))
def test_float16_is_finite_where_torch_is(name, tmp_path):
    model = overflowing(name, tmp_path)
    given = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": np.abs(BATCH["labels"]) % 37}
    tensors = {key: torch.tensor(value) for key, value in given.items()}
    half = type(model).from_pretrained(tmp_path, dtype=torch.float16).eval()
    with torch.no_grad():
        wide, theirs = (m(**tensors).logits.float().numpy() for m in (model, half))
    assert np.isfinite(theirs).all()
    pair = from_pretrained(tmp_path, dtype=jnp.float16)
    ours = jax.jit(lambda params: pair.model.apply({"params": params}, **given).logits)(pair.params)
    ladder.close(ours, wide, 2e-2, "logits in float16")
    if "wo" in str(list(dict(model.named_parameters()))):
        check_decoding_and_gradient(pair, given, np.asarray(ours))


def check_decoding_and_gradient(pair, given, expected):
    decoding, params = pair.model.for_decoding(), pair.model.decoding_params(pair.params)

    @jax.jit
    def last(params):
        states = decoding.apply({"params": params}, IDS, MASK, method="encode")
        tokens = given["decoder_input_ids"]
        cache = decoding.apply({"params": params}, states, MASK, 1, tokens.shape[1], method="init_cache")
        return decoding.apply({"params": params}, tokens[:, None], cache, method="decode_step")[0][:, 0]

    ladder.close(np.asarray(last(params))[:, :37], expected[:, -1], 2e-2, "logits of decoding in float16")
    loss = lambda params: pair.model.apply({"params": params}, IDS, MASK, labels=BATCH["labels"]).loss
    grads = jax.jit(jax.grad(loss))(pair.params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


# --- rows of the padding token, whose gradients test_families.py compares


def torch_decoder(config):
    maker = AutoModelForSeq2SeqLM if config.model_type in models.T5_ENCODERS else AutoModelForCausalLM
    return maker.from_config(config)


TORCH = {"encoder": AutoModel.from_config, "decoder": torch_decoder}
# Their positions begin behind the pad token, so they must have one.
COUNTED_FROM_PAD = ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "xlm-roberta-xl", "data2vec-text",
                    "longformer")  # fmt: skip
PADS = {"as it is": {}, "negative": {"pad_token_id": -1}, "none": {"pad_token_id": None}}


@pytest.mark.parametrize("pad", PADS)
def test_padding_row_is_that_of_the_torch_class(pad):
    differ = {}
    for role, names in (("encoder", models.ENCODERS), ("decoder", models.DECODERS)):
        for name in names:
            try:
                config = models.config_of(name, **PADS[pad])
                model = TORCH[role](config)
            except (AssertionError, TypeError, ValueError, RuntimeError, StrictDataclassError):
                continue  # torch makes no such model, or none that is not trained from a file
            theirs = model.get_input_embeddings().padding_idx
            if model.get_input_embeddings().padding_idx is None and name in COUNTED_FROM_PAD:
                with pytest.raises(ValueError, match="pad_token_id is null; give the pad token's id"):
                    from_hf(config.to_dict(), role)
                continue
            ours = from_hf(config.to_dict(), role).padding_idx
            if ours != theirs:
                differ[role, name] = ours, theirs
    assert not differ, differ
