"""What is found out about the person in a photo, and the parts of an edit request that follow from it."""
