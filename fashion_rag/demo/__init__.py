"""The paper-doll world and the training of the demo bundle."""
