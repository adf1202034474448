"""Run by test_mesh.py in a process of its own, with 8 virtual devices: prints one line per strategy that agreed."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import seq2seq_jax as s2s
from seq2seq_jax.decoding import engine
from seq2seq_jax.parallel.mesh import make_mesh

WORK = Path(sys.argv[1])
BERT = {
    "model_type": "bert",
    "vocab_size": 61,  # odd: padded where it is split
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 32,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,
}
WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "rng": jax.random.key(5), "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam-sample": {"num_beams": 2, "do_sample": True, "rng": jax.random.key(6)},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained": {"num_beams": 3, "force_words_ids": [[20, 21]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
}
# The cache grows once, and rows leave.
engine.FIRST_CAPACITY, engine.SHRINK = 32, 2
IDS = np.random.default_rng(0).integers(3, 61, (8, 9))
UNEVEN = jax.tree_util.Partial(
    lambda context: jnp.broadcast_to(context.length > 3 + context.source[:, :1] // 2, context.sequences.shape[:2])
)

one = s2s.from_encoder_decoder_configs(BERT, BERT, decoder_start_token_id=1, pad_token_id=0, eos_token_id=2, seed=3)
s2s.save_pretrained(WORK / "pair", one)
one8 = s2s.quantize(one)
for layout in ({"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}):
    mesh = make_mesh(**layout)
    many = s2s.from_pretrained(WORK / "pair", mesh=mesh)
    for name, way in WAYS.items():
        settings = {"max_length": 50, "criteria": [UNEVEN], **way}
        alone = one.generate(IDS, **settings)
        for compact in (False, True):
            with jax.set_mesh(mesh):
                together = many.generate(IDS, compact=compact, **settings)
            np.testing.assert_array_equal(together.sequences, alone.sequences, err_msg=f"{name} {layout} {compact}")
            np.testing.assert_array_equal(together.beam_indices, alone.beam_indices)
            if alone.sequences_scores is not None:
                np.testing.assert_allclose(together.sequences_scores, alone.sequences_scores, rtol=1e-4)
        print(f"held: {name} on {layout}", flush=True)
    for name in ("greedy", "beam"):  # int8 products are exact: the split changes nothing
        alone = one8.generate(IDS, max_length=50, **WAYS[name])
        with jax.set_mesh(mesh):
            together = s2s.quantize(many).generate(IDS, max_length=50, **WAYS[name])
        np.testing.assert_array_equal(together.sequences, alone.sequences, err_msg=f"int8 {name} {layout}")
        print(f"held: int8 {name} on {layout}", flush=True)
