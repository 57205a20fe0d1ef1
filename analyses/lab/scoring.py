"""Scores a lab model by what it writes: greedy captions of held-out images through the real `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .canvas import ATTRIBUTES
from .data import LabDataset
from .grammar import PROMPT, named_digits

if TYPE_CHECKING:
    from modegap.engine.datasets import Dataset


def score(model: Any, processor: Any) -> dict[str, Any]:
    """The headline numbers of a variant, on two looks at each held-out scan."""
    held_out = LabDataset("test", size=720)
    return {
        "images": len(held_out),
        "digit_accuracy": digit_accuracy(generate_captions(model, processor, held_out), held_out),
        "caption_loss": caption_loss(model, processor, LabDataset("test")),
        "encoder_probes": probe_accuracies(model, processor, "encoder"),
        "adapter_probes": probe_accuracies(model, processor, "adapter"),
    }


@torch.no_grad()
def generate_captions(model: Any, processor: Any, dataset: Dataset, batch: int = 60) -> list[str]:
    """One greedy caption a sample."""
    written: list[str] = []
    for start in range(0, len(dataset), batch):
        samples = [dataset[row] for row in range(start, min(start + batch, len(dataset)))]
        inputs = processor(
            images=[sample.media for sample in samples],
            text=[PROMPT] * len(samples),
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        written += processor.batch_decode(ids, skip_special_tokens=True)
    return written


def digit_accuracy(texts: list[str], dataset: LabDataset) -> float:
    """Share of the captions that name one digit, the right one."""
    digits = dataset.labels()["digit"]
    return float(np.mean([named_digits(text) == [digit] for text, digit in zip(texts, digits, strict=True)]))


@torch.no_grad()
def caption_loss(model: Any, processor: Any, dataset: LabDataset) -> float:
    """Mean cross-entropy of the true captions given the images, nats a token (the end token included)."""
    tokenizer = processor.tokenizer
    samples = list(dataset)
    inputs = processor(
        images=[sample.media for sample in samples],
        text=[f"{PROMPT} {sample.text}{tokenizer.eos_token}" for sample in samples],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    ).to(model.device)
    prompt = processor(images=[samples[0].media], text=[PROMPT], return_tensors="pt")["input_ids"].shape[1]
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :prompt] = -100
    return float(model(**inputs, labels=labels).loss)


@torch.no_grad()
def probe_accuracies(model: Any, processor: Any, point: str = "encoder") -> dict[str, float]:
    """Held-out accuracy of logistic regressions on mean patch tokens, one a label: what the features hold.

    `point` is `encoder` (the layer LLaVA takes) or `adapter` (the projector's output).
    """
    from sklearn.linear_model import LogisticRegression

    columns: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
    features = []
    sets = (LabDataset("train"), LabDataset("test"))
    core = model if hasattr(model, "vision_tower") else model.model
    for dataset in sets:
        images = processor.image_processor([s.media for s in dataset], return_tensors="pt")["pixel_values"]
        out = core.vision_tower(images.to(model.device, model.dtype), output_hidden_states=True)
        tokens = out.hidden_states[model.config.vision_feature_layer][:, 1:]
        if point == "adapter":
            tokens = core.multi_modal_projector(tokens)
        features.append(tokens.mean(1).float().cpu().numpy())
    mean, std = features[0].mean(0), features[0].std(0) + 1e-6
    train, test = ((rows - mean) / std for rows in features)
    for name in ("digit", *ATTRIBUTES):
        known, asked = (np.array(dataset.labels()[name]) for dataset in sets)
        columns[name] = (known, asked)
    return {
        name: float(LogisticRegression(C=1.0, max_iter=300).fit(train, known).score(test, asked))
        for name, (known, asked) in columns.items()
    }
