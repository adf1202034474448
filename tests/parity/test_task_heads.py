"""Checkpoints fine-tuned for another task, as encoder and as decoder, against torch's Auto classes on the directory."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from flax.traverse_util import flatten_dict  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

from seq2seq_jax.families import registry  # noqa: E402
from seq2seq_jax.pretrained.warm_start import from_encoder_decoder_pretrained  # noqa: E402
from seq2seq_jax.weights.initialization import MAY_BE_NEW  # noqa: E402
from tests.parity import family_models as models  # noqa: E402
from tests.parity import torch_models  # noqa: E402

pytestmark = pytest.mark.parity
# What shows a rule of its own: a pooler that belongs to the head, two heads, another prefix, halves, an untied head.
QUICK = {"BertForSequenceClassification", "GPT2DoubleHeadsModel", "LlamaForQuestionAnswering",
         "BartForSequenceClassification", "NomicBertForSequenceClassification"}  # fmt: skip
LEFT_OUT = {"JevForDecision", "T5GemmaEncoderModel"}  # other configurations


def classes():
    """Case's name and class, for every class with a head that transformers has for a supported model_type."""
    cases, there = {}, set(dir(transformers))  # hasattr would import every class
    for name, (kind, _) in models.CASES.items():
        cases.setdefault(kind, name)
    found = {("gpt2", "GPT2DoubleHeadsModel")}
    for mapping in vars(modeling_auto):
        if mapping.startswith("MODEL_FOR_") and mapping.endswith("_MAPPING_NAMES"):
            for kind, names in getattr(modeling_auto, mapping).items():
                names = (names,) if isinstance(names, str) else names
                found.update((cases[kind], n) for n in names if kind in cases and n in there)
    return sorted((case, cls) for case, cls in found if cls not in LEFT_OUT)


CASES = [pytest.param(*c, id="-".join(c), marks=() if c[1] in QUICK else pytest.mark.slow) for c in classes()]


@pytest.fixture(scope="module")
def small_decoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder")
    torch_models.decoder("bert", num_hidden_layers=1).save_pretrained(path)
    return path


def judged(kind, model, directory):
    """What torch's Auto class makes of the checkpoint, and the names that it found no tensor for."""
    load = {"encoder": transformers.AutoModel, "decoder": transformers.AutoModelForCausalLM}[kind]
    if (
        kind == "decoder"
        and model.config.is_encoder_decoder
        and model.config.model_type in ("t5gemma", "t5gemma2", "t5", "mt5", "umt5")
    ):
        load = transformers.AutoModelForSeq2SeqLM
    made, info = load.from_pretrained(directory / "tuned", output_loading_info=True)
    missing = set(info["missing_keys"])
    if any("embed" in name or name.endswith("wte.weight") for name in missing):
        # A prefix of the class's own (LlamaForQuestionAnswering), or a table under the name of the whole (BART): torch
        # would begin anew, so the class's base model is put there.
        target = made if kind == "encoder" else made.base_model
        assert not target.load_state_dict(model.base_model.state_dict(), strict=False).missing_keys
        made.tie_weights()
        missing = set() if made.config.tie_word_embeddings else {name for name in missing if "head" in name}
    made.save_pretrained(directory / kind)
    return directory / kind, missing


def same(ours, theirs, side, new=()):
    ours, theirs = (flatten_dict(pair.params[side], sep="/") for pair in (ours, theirs))
    assert set(ours) == set(theirs)
    for path, value in ours.items():
        if f"{side}/{path}" not in new:
            np.testing.assert_array_equal(np.asarray(value), np.asarray(theirs[path]), err_msg=path)


@pytest.mark.parametrize(("case", "cls"), CASES)
def test_states(case, cls, small_decoder, tmp_path):
    """Every parameter is that of torch's class; new ones are those that torch finds no tensor for."""
    torch.manual_seed(0)
    model = models.ready(getattr(transformers, cls)(models.config_of(case)), 0)
    model.save_pretrained(tmp_path / "tuned")
    tuned, family = tmp_path / "tuned", registry.family_of({"model_type": model.config.model_type})
    roles = set(family.prefixes)
    lacking = {"encoder"} if family.seq2seq and cls.endswith("ForCausalLM") else set()
    lacking |= {"decoder"} if family.name == "t5" and ("EncoderModel" in cls or "Token" in cls) else set()
    for role in lacking & roles:
        sides = {"encoder": small_decoder, "decoder": small_decoder, role: tuned}
        with pytest.raises(ValueError, match=f"no tensor of a .* {role} is there; looked for '"):
            from_encoder_decoder_pretrained(**sides)
    roles -= lacking
    encoder = judged("encoder", model, tmp_path)[0] if "encoder" in roles else small_decoder
    decoder, missing = judged("decoder", model, tmp_path) if "decoder" in roles else (small_decoder, set())
    ours = from_encoder_decoder_pretrained(
        tuned if "encoder" in roles else encoder, tuned if "decoder" in roles else decoder
    )
    theirs = from_encoder_decoder_pretrained(encoder, decoder)
    same(ours, theirs, "encoder")
    new = {entry.name for entry in ours.report.of("initialised", "decoder")}
    assert all(MAY_BE_NEW.match(name) for name in new)
    first = lambda path: re.sub(r"/stacked/block_(\d+)/", r"/layers_\1/", path)
    same(ours, theirs, "decoder", {path for path in flatten_dict(ours.params, sep="/") if first(path) in new})
    if "decoder" in roles:
        heads = {name for name in missing if "crossattention" not in name and "encoder_attn" not in name}
        assert any(name.startswith("decoder/head/") for name in new) == bool(heads), (new, missing)
        assert any("no complete language-model head" in note for note in ours.report.notes) == bool(heads)


def test_what_the_report_says(small_decoder, tmp_path):
    """What lies outside the prefix is another part; an unknown name under it is an error, and so is one beside bare
    names."""
    model = models.ready(transformers.BertForTokenClassification(models.config_of("bert")), 0)
    model.save_pretrained(tmp_path)
    report = from_encoder_decoder_pretrained(tmp_path, small_decoder).report
    assert {entry.name for entry in report.of("other part", "encoder")} == {"classifier.weight", "classifier.bias"}
    for name, holder in (("bert.extra.weight", model), ("extra.weight", model.bert)):
        tensors = {**holder.state_dict(), name: torch.zeros(3)}
        holder.save_pretrained(tmp_path, state_dict=tensors)
        with pytest.raises(ValueError, match=f"nothing is known about the tensor '{name}'"):
            from_encoder_decoder_pretrained(tmp_path, small_decoder)
