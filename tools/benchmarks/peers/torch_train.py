"""Training steps of transformers' EncoderDecoderModel with torch.optim.AdamW."""

import harness
import torch
from torch_decode import peak, reset
from transformers import EncoderDecoderModel


def load(setting):
    torch.set_num_threads(setting["threads"])
    device = {"cpu": "cpu", "gpu": "cuda"}[setting["device"]]
    model = EncoderDecoderModel.from_pretrained(setting["directory"]).to(device).train()
    for side in (model.encoder, model.decoder):  # the comparison is with sdpa
        if side.config._attn_implementation != "sdpa":
            raise RuntimeError(
                f"attention is {side.config._attn_implementation}, not sdpa; install another version of transformers"
            )
    adamw = torch.optim.AdamW(model.parameters(), lr=setting["learning_rate"], weight_decay=0.01)
    run = torch.compile(model) if setting.get("compile") else model
    return run, model, adamw, setting


def train(state, request):
    run, model, adamw, setting = state
    ids, labels = (torch.tensor(request["arrays"][name], device=model.device) for name in ("input_ids", "labels"))
    half = setting["dtype"] == "bfloat16"

    def work():
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            loss = run(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return {"loss": float(loss)}

    return work


if __name__ == "__main__":
    harness.serve(load, {"train": train}, ("torch", "transformers", "numpy"), (reset, peak))
