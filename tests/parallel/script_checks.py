"""Run by test_scripts.py in a process of its own, with 8 virtual devices: a script, its pair split by fsdp and tensor.
Prints one line per check that held."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags
from absl.testing import flagsaver

from seq2seq_jax.config import DataConfig, GenerationConfig, LossConfig
from seq2seq_jax.data.encoding import encode_pairs
from seq2seq_jax.data.sources import load_pairs
from seq2seq_jax.evaluation.loss import corpus_loss
from seq2seq_jax.inference import evaluate as inference
from seq2seq_jax.inference import line_decoder
from seq2seq_jax.inference.evaluate import evaluate
from seq2seq_jax.inference.line_decoder import LineDecoder
from seq2seq_jax.parallel.mesh import make_mesh
from seq2seq_jax.pretrained.saving import save_pretrained
from seq2seq_jax.text.tokenizer import load_tokenizer
from seq2seq_jax.training.checkpoints import load_trained
from seq2seq_jax.weights.loading import abstract_params
from tests.training import toy
from tests.weights.checkpoints import BERT, make_pair

WORK, NAME = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
script = __import__(NAME)
mesh_flags = sys.modules["mesh_flags"]

toy.make(WORK)
config = {**BERT, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4}
pair = make_pair(config, config).replace(generation_config=GenerationConfig(max_length=12, num_beams=2))
save_pretrained(WORK / "pair", pair, tokenizer=load_tokenizer(WORK / "alone"))
alone = load_trained(WORK / "pair")
rows = [json.loads(line) for line in (WORK / "train.jsonl").read_text().splitlines()]
texts = [row["document"] for row in rows]
SPLIT = ("--fsdp=2", "--tensor=2")
seen = []


def call(*arguments):
    """Runs the script; the pair that it worked with is the last of `seen`."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        script.main(flags.FLAGS([NAME, f"--model={WORK / 'pair'}", "--batch_size=8", *map(str, arguments)]))


def held(name):
    print("held:", name, flush=True)


def check_places(pretrained, **sizes):
    """Each parameter lives where the table of logical axes says."""
    mesh = make_mesh(**sizes)
    assert pretrained.config.decoder.padded_vocab_size == 32
    places = abstract_params(pretrained.model, mesh, np.float32)
    jax.tree.map(lambda x, place: check_place(x, place), dict(pretrained.params), places)
    layers = pretrained.params["decoder"]["layers"]
    layer = layers.get("layers_1") or layers["stacked"]["block_0"]
    kernel = layer["self_attention"]["query"]["kernel"]
    assert {4 * s.data.size for s in kernel.addressable_shards} == {kernel.size}, kernel.sharding
    held("each device holds its part of the weights")


def check_place(x, place):
    assert x.shape == place.shape and x.sharding.is_equivalent_to(place.sharding, x.ndim), (x.shape, x.sharding, place)


def check_refusals(*arguments):
    for sizes, message in (
        (("--fsdp=3",), "--fsdp=3 --tensor=1 make groups of 3 devices, and there are 8; give sizes whose product is"),
        (("--tensor=8",), "'heads' axis of 4 cannot be split over 8 devices of the mesh axis 'tensor'; give that mesh"),
    ):
        try:
            call(*arguments, *sizes)
        except Exception as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"{sizes} was accepted")
    held("sizes that do not divide are refused")


def recorded(function):
    """`function`, which is given a pair first, recording it."""

    def call(pretrained, *arguments, **options):
        seen.append(pretrained)
        return function(pretrained, *arguments, **options)

    return call


def generate():
    line_decoder.LineDecoder = recorded(LineDecoder)
    (WORK / "in.txt").write_text("".join(text + "\n" for text in texts))
    decode = LineDecoder(alone.pretrained.for_decoding(), alone.tokenizers, window=16, batch_size=8, scores=True)
    lines = "".join(decode(i, texts[16 * i :][:16]) for i in range(3)).splitlines()
    expected = [json.loads(line) for line in lines]
    arguments = (f"--input={WORK / 'in.txt'}", "--scores", "--window=16")
    call(*arguments, f"--output={WORK / 'out'}", *SPLIT)
    check_places(seen[-1], data=2, fsdp=2, tensor=2)
    found = [json.loads(line) for line in (WORK / "out").read_text().splitlines()]
    assert [row["text"] for row in found] == [row["text"] for row in expected]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], rtol=1e-4)
    assert len({row["text"] for row in found}) > 10, "the outputs hardly depend on the inputs"
    held("the output of one device")

    options = {"window": 16, "batch_size": 8, "scores": True}
    assert LineDecoder(seen[-1], alone.tokenizers, **options).settings() == decode.settings()
    held("the settings of one device, so that a partial output goes on")
    check_refusals(*arguments)


def evaluation():
    inference.evaluate = recorded(evaluate)
    settings = DataConfig(train="", max_source_length=16, max_target_length=16)
    pairs = load_pairs(str(WORK / "train.jsonl"), source_field="document", target_field="summary")
    examples = encode_pairs(pairs, *alone.tokenizers, settings, "train")
    options = {"metrics": ["rouge", "bleu"], "batch_size": 8}
    one = make_mesh(devices=jax.devices()[:1])
    expected = evaluate(alone.pretrained, examples, alone.tokenizers, one, **options)
    arguments = (f"--data={WORK / 'train.jsonl'}", f"--output={WORK / 'scored'}")
    call(*arguments, *SPLIT)
    check_places(seen[-1], data=2, fsdp=2, tensor=2)
    found = json.loads((WORK / "scored" / "scores.json").read_text())
    for name, value in expected.scores.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    predictions = (WORK / "scored" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in predictions] == [sample._asdict() for sample in expected.samples]
    held("the scores of one device")

    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        options = {"batch_size": 8, "source_pad_id": 0, "loss_config": LossConfig(chunk=6)}
        chunked = corpus_loss(seen[-1].model, seen[-1].params, examples, mesh, **options)
    np.testing.assert_allclose(chunked, expected.scores["loss"], rtol=1e-5)
    held("the loss in chunks")
    check_refusals(*arguments)


{"generate": generate, "evaluate": evaluation}[NAME]()
