"""The HTTP interface of the ingress: what callers send, what they get back, and who may enter."""
