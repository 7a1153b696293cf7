"""The small model that ships with the project: its configuration, its training on paper dolls, and its evaluation."""
