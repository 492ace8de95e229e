"""Probabilities of an image by a pushed model: python load_pushed.py REPO IMAGE; a line of JSON, as three libraries load it."""

import json
import sys

import timm
import torch
from PIL import Image
from transformers import pipeline

from mixer_finetune import load_backbone
from mixer_finetune.data.augment import evaluation_crop, normalize
from mixer_finetune.images import to_tensor

repo, path = sys.argv[1:]
image = Image.open(path).convert("RGB")

with torch.inference_mode():
    model = load_backbone(repo).eval()
    images = normalize(to_tensor(evaluation_crop(image, model.preprocessing))[None], model.preprocessing)
    ours = dict(zip(model.label_names, model(images).softmax(-1)[0].tolist(), strict=True))

    theirs = timm.create_model(f"hf-hub:{repo}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    by_timm = dict(zip(model.label_names, theirs(transform(image)[None]).softmax(-1)[0].tolist(), strict=True))

classify = pipeline("image-classification", repo, device="cpu", top_k=len(ours))
by_transformers = {found["label"]: found["score"] for found in classify(image)}
print(json.dumps({"ours": ours, "timm": by_timm, "transformers": by_transformers}))
