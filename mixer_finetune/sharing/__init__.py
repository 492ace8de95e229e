"""What leaves the run folder: model card, push and export."""
