"""What comes out: model folders, pictures and results."""
