"""The validators' network: what they send each other, and how it gets there."""
