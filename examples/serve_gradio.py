"""A page to drop images on: python examples/serve_gradio.py RUN."""

import sys

import gradio

from mixer_finetune import load_backbone

backbone = load_backbone(sys.argv[1]).eval()  # a run, a model folder or a Hub repository
demo = gradio.Interface(
    lambda image: backbone.predict(image) if image is not None else None,
    gradio.Image(type="pil", label="image"),
    gradio.Label(num_top_classes=5, label="classes"),
    title="What is it?",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
