"""Multiphase level-set (Mumford-Shah) loss on softmax maps (Kim & Ye 2019, arXiv 1904.02872)."""
