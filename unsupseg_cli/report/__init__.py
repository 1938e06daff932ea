"""Pictures of results: palettes, overlays, contact sheets, plots. Functions return images or figures."""
