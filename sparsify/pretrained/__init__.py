"""Hugging Face folders: what they hold, whether it is whole, and the model they make."""
