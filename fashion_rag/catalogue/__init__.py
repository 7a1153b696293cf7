"""Garments that can be found by text: the retrieval encoder, the stored garments and the index over them."""
