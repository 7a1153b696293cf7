"""The Dress Code layout made of a shop's own photos: label maps, key points, captions and pairs."""
