"""The stages as a table: recipes, runs, dry runs, comparisons."""
