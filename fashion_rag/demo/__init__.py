"""The paper-doll world, the training of the small model that ships with the project, and its evaluation."""
