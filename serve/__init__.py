"""The method as a Ray Serve graph behind HTTP."""
