"""What may be asked of an image, by the names in files: one label, or several. Nothing here imports torch."""

TASK_NAMES = ("single_label", "multi_label")
