"""Models of text, a file each. They take dicts of tensors and give logits."""
