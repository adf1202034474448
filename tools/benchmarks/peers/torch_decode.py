"""Decoding by transformers' generate on PyTorch."""

import os

import harness
import numpy as np
import torch
from transformers import AutoTokenizer, EncoderDecoderModel


def load(setting):
    torch.set_num_threads(setting["threads"])
    dtype = getattr(torch, setting["dtype"])
    model = EncoderDecoderModel.from_pretrained(setting["directory"], dtype=dtype).eval()
    return model.to({"cpu": "cpu", "gpu": "cuda"}[setting["device"]]), setting


def decode(state, request):
    model, setting = state
    ids = torch.tensor(request["input_ids"], device=model.device)
    model.generation_config.eos_token_id = None  # in a call's arguments None means the value of generation_config
    options = dict(num_beams=request["beams"], max_new_tokens=request["steps"], do_sample=False)
    if setting.get("compile"):
        options["cache_implementation"] = "static"
        compile_decoder(model)

    def work():
        sequences = generate(model, ids, torch.ones_like(ids), options)
        tokens = harness.count_tokens(sequences, model.generation_config.pad_token_id)
        return {"tokens": tokens, "outputs": sequences.tolist()}

    return work


def compile_decoder(model):
    """Compiles the decoder's step as one graph; generate itself does so for sampling only, not for beams.

    Without mode="reduce-overhead": reordering beams makes new cache tensors in each step, which CUDA graphs refuse.
    """
    torch._dynamo.reset()  # so that a row is not compiled as a dynamic shape of the one before
    torch._dynamo.config.capture_scalar_outputs = True  # otherwise BERT's embeddings break the graph
    model.decoder.__dict__.pop("forward", None)  # the compiled step of an earlier row
    model.decoder.forward = torch.compile(model.decoder.forward, dynamic=False)


def corpus(state, request):
    model, setting = state
    tokenizer = AutoTokenizer.from_pretrained(setting["directory"])
    rows, options = request["ids"], dict(num_beams=request["beams"])
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))

    def work():
        texts = [""] * len(rows)
        for begin in range(0, len(order), request["batch"]):
            numbers = order[begin : begin + request["batch"]]
            longest = len(rows[numbers[0]])
            ids = torch.full((len(numbers), longest), request["pad"], device=model.device)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(numbers):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
                mask[row, : len(rows[i])] = 1
            sequences = generate(model, ids, mask, options)
            for i, text in zip(numbers, tokenizer.batch_decode(sequences, skip_special_tokens=True)):
                texts[i] = text
        return {"outputs": texts}

    return work


def generate(model, ids, mask, options):
    """An int array [batch, length] of numpy."""
    with torch.inference_mode():
        return np.asarray(model.generate(ids, attention_mask=mask, **options).cpu())


def reset():
    torch.cuda.reset_peak_memory_stats()
    return True


def peak():
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    kinds = {"decode": decode, "corpus": corpus}
    harness.serve(load, kinds, ("torch", "transformers", "numpy"), (reset, peak))
