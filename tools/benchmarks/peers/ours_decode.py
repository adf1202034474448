"""Decoding by seq2seq_jax, and a measurement of the machine's speed under jax."""

import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

import seq2seq_jax as s2s


def load(setting):
    if jax.default_backend() != setting["device"]:
        raise RuntimeError(f"jax runs on {jax.default_backend()}, not {setting['device']}; install jax for it")
    dtype = jnp.dtype(setting["dtype"])
    pair = s2s.from_pretrained(setting["directory"], dtype=dtype, param_dtype=dtype)
    return (s2s.quantize(pair) if setting.get("int8") else pair).for_decoding(), setting


def decode(state, request):
    pair, _ = state
    ids = np.asarray(request["input_ids"], np.int32)
    options = dict(num_beams=request["beams"], max_new_tokens=request["steps"], eos_token_id=())

    def work():
        sequences = np.asarray(pair.generate(ids, **options).sequences)
        return {"tokens": harness.count_tokens(sequences, pair.config.pad_token_id), "outputs": sequences.tolist()}

    return work


def corpus(state, request):
    from seq2seq_jax.inference.corpus import decode_ids
    from seq2seq_jax.text.tokenizer import Tokenizers  # imported here because the other kinds need fewer packages

    pair, setting = state
    tokenizers = Tokenizers.load(setting["directory"], setting["directory"])

    def work():
        outputs = decode_ids(
            pair, request["ids"], tokenizers.target, request["pad"],
            batch_size=request["batch"], num_beams=request["beams"], compact=True,
        )  # fmt: skip
        return {"outputs": [hypotheses[0] for hypotheses in outputs]}

    return work


def rates(state, request):
    dtype, width = jnp.dtype(state[1]["dtype"]), request["width"]
    rows = 8 * width  # of the matrix that is copied or multiplied by a vector; it must not fit into the caches

    def work():
        square = jax.random.normal(jax.random.key(0), (width, width), dtype)
        tall = jax.random.normal(jax.random.key(0), (rows, width), dtype)
        product = _fastest(jax.jit(jnp.matmul), square, square)
        # A copy reads and writes, a product with a vector only reads; the better rate is taken.
        copy = 2 * tall.nbytes / _fastest(jax.jit(lambda x: x + 1), tall)
        read = tall.nbytes / _fastest(jax.jit(jnp.matmul), tall, square[0])
        return {"flops": 2 * width**3 / product, "bandwidth": max(copy, read), "chip": jax.devices()[0].device_kind}

    return work


def _fastest(function, *arguments, repeats=10):
    """Seconds of the fastest of `repeats` calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - begin)
    return best


def reset():
    return False  # jax's peak counts from the start of the process


def peak():
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


if __name__ == "__main__":
    kinds = {"decode": decode, "corpus": corpus, "rates": rates}
    harness.serve(load, kinds, ("jax", "jaxlib", "flax", "numpy"), (reset, peak))
