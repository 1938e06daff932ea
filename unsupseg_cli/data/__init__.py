"""Images, labels, data sets and geometry: reads image and label files, knows nothing of artifacts."""
