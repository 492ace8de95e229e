"""A web service that classifies images: MODEL=RUN uvicorn --app-dir examples serve_fastapi:app.

curl --data-binary @photo.jpg http://localhost:8000/predict
"""

import io
import os

from fastapi import FastAPI, HTTPException, Request
from PIL import Image, UnidentifiedImageError
from starlette.concurrency import run_in_threadpool

from mixer_finetune import load_backbone

backbone = load_backbone(os.environ["MODEL"]).eval()  # a run, a model folder or a Hub repository
app = FastAPI()


@app.get("/labels")
def labels() -> list[str]:
    return backbone.label_names or []


@app.post("/predict")
async def predict(request: Request, top_k: int = 5) -> dict[str, float]:
    try:
        image = Image.open(io.BytesIO(await request.body()))
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise HTTPException(415, "the body of the request must be an image") from error
    return await run_in_threadpool(backbone.predict, image, top_k)
