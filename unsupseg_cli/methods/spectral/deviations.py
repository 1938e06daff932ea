"""What spectral clustering does otherwise than published."""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Deviation

DEVIATIONS = (
    Deviation(
        "graph",
        "the ten nearest tokens of other images, by cosine",
        "all pairs of points, by a Gaussian of their distance",
        "clusters of tokens that carry their image are images otherwise (README.md)",
        "",
    ),
    Deviation(
        "diffused tokens",
        "by the random walk, k-means, as many steps as have the clusters of greatest modularity",
        "by the symmetric normalised affinity, spectral clustering, more steps while distances within clusters fall",
        "modularity is of the graph, and falls where classes have become one",
        "",
    ),
    Deviation(
        "points",
        "a sample of 16,000 tokens, which votes on the others",
        "all points",
        "eigenvectors of all tokens of a collection take too long, and the votes are cheap",
        "pseudolabel --set sample=100000, at most",
    ),
    Deviation(
        "choice",
        "of four samples the clusters of greatest modularity",
        "one clustering",
        "samples differ more than starts of k-means do",
        "pseudolabel --set draws=1",
    ),
)
