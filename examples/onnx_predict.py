"""Classify images with an exported model, without torch: python examples/onnx_predict.py model.onnx photo.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
names, how = json.loads(about["label_names"]), json.loads(about["preprocessing"])
channels, height, width = how["input_size"]
if how["crop_mode"] != "center" or channels != 3:
    sys.exit(f"this example crops RGB images at the centre; the model wants {how['crop_mode']}, {channels} channels")


def prepare(path):
    """An image as the model takes it, (3, H, W): resized, cropped at the centre, normalised."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    whole = (round(width / how["crop_pct"]), round(height / how["crop_pct"]))
    image = ImageOps.fit(image, whole, Image.Resampling[how["interpolation"].upper()])
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    return ((pixels - how["mean"]) / how["std"]).transpose(2, 0, 1).astype(np.float32)


(logits,) = session.run(None, {"images": np.stack([prepare(path) for path in sys.argv[2:]])})
odds = np.exp(logits - logits.max(1, keepdims=True))
for path, row in zip(sys.argv[2:], odds / odds.sum(1, keepdims=True), strict=True):
    print(path, *(f"{names[i]} {row[i]:.1%}" for i in row.argsort()[::-1][:3]))
