"""Encoders, projection heads and decoders."""
