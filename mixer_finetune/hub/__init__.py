"""The Hugging Face Hub: repositories and files, reading and writing. Nothing here knows what a model is."""
