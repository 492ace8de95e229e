"""What it is trained on: image data sets as batches."""
