"""Curvature: what a likelihood and a prior say about the second derivative of the log joint, in pieces that can be priced."""
