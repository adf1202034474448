"""Decoding by CTranslate2, of a converted BART."""

import ctranslate2
import harness


def load(setting):
    return ctranslate2.Translator(
        setting["directory"], device="cpu", compute_type=setting["compute_type"], intra_threads=setting["threads"]
    )


def decode(translator, request):
    source = [[f"t{i}" for i in row] for row in request["input_ids"]]  # the names that convert_bart.py gives
    steps = request["steps"]
    # A length of 0 truncates nothing; the minimum length keeps the end token from being written.
    options = dict(
        beam_size=request["beams"], max_decoding_length=steps, min_decoding_length=steps,
        max_input_length=0, max_batch_size=0,
    )  # fmt: skip

    def work():
        results = translator.translate_batch(source, **options)
        return {"tokens": sum(len(result.hypotheses[0]) for result in results)}

    return work


if __name__ == "__main__":
    harness.serve(load, {"decode": decode}, ("ctranslate2", "numpy"))
