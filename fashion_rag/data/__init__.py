"""Pictures, poses, masks and the Dress Code layout, as the model wants them."""
