"""Fashion-RAG: edit a photo so that the person wears a garment retrieved by text."""
