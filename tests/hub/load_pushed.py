"""Probabilities of an image by a pushed model, as three libraries load it: python load_pushed.py REPO IMAGE."""

import json
import sys

import timm
import torch
from PIL import Image
from transformers import pipeline

from mixer_finetune import load_backbone

repo, path = sys.argv[1:]
image = Image.open(path).convert("RGB")

with torch.inference_mode():
    model = load_backbone(repo).eval()
    ours = model.predict(image, top_k=model.num_classes)

    theirs = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))

    def by_timm(pixels: torch.Tensor) -> dict[str, float]:
        return dict(zip(model.label_names, theirs(pixels[None]).softmax(-1)[0].tolist(), strict=True))

    found = {"ours": ours, "timm": by_timm(transform(image)), "timm on our pixels": by_timm(model.preprocessing(image))}

classify = pipeline("image-classification", repo, device="cpu", top_k=len(ours))
found["transformers"] = {answer["label"]: answer["score"] for answer in classify(image)}
print(json.dumps(found))
