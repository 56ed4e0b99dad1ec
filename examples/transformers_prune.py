"""A model of the transformers library, pruned as it is and fine-tuned for a few steps; from a config, so nothing is downloaded.

    pip install 'graphprune[torch]' transformers
    python examples/transformers_prune.py
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

import graphprune as gp


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
                        max_position_embeddings=32, num_labels=2)  # fmt: skip
    model = BertForSequenceClassification(config).eval()  # or .from_pretrained("...")

    # A toy task: does token 7 occur in the sentence?
    ids = torch.randint(8, 200, (512, 16))
    labels = torch.arange(512) % 2
    ids[labels == 1, torch.randint(0, 16, (256,))] = 7
    mask = torch.ones_like(ids)

    count = parameters(model)
    result = gp.prune(model, {"input_ids": ids[:2], "attention_mask": mask[:2]}, passes=["group-taylor"], rate=0.4, scope="group")
    model = result.model  # the same object where its code allows, else a module with the same weights
    print(f"parameters {count:,} -> {parameters(model):,}, proved to {result.plan.verify['max_rel_error']:.1e}")

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(40):
        chosen = torch.randperm(512)[:64]
        logits = model(input_ids=ids[chosen], attention_mask=mask[chosen]).logits
        loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print(f"loss at the end: {loss.item():.3f}")


if __name__ == "__main__":
    main()
