"""Scores of a segmentation against labels: confusion, matching of clusters to classes, accuracy and IoU.

Void leaves both sides, predictions are dropped by one rule alone, and every score names the rule that matched clusters
to classes. Pure numpy: no disk, no torch.
"""
