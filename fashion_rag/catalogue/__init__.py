"""A catalogue of garments that are found by text: the retrieval encoder, the stored garments and their index."""
