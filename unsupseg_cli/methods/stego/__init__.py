"""STEGO (Hamilton, Zhang, Hariharan, Snavely, Freeman: ICLR 2022, arXiv 2203.08414).

1. Frozen features of a self-supervised ViT already agree where the classes agree (section 3.1). A small head
   (section 3.3) turns them into codes whose agreement is sharper.
2. An image is compared with itself, with one of its nearest neighbours (the `graph`) and with random images.
3. Correspondences are cosines between features, F, and between codes, S, at random points of the two images.
4. F is centred over the second image's points (spatial centring, section 3.2), which keeps small objects alive.
5. The loss -(F - b) max(S, 0), equation 4, draws codes together where F exceeds the shift b, and apart below.
6. The three kinds of pairs have their own weight and shift; the shifts are measured here (see `shifts`).
7. A cluster probe (section 3.3) learns K directions on the codes; it starts anew, several times, on the final
   codes, and the one with the lowest loss of its own is kept. The CRF of the paper is the stage `refine`.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.deviations import DEVIATIONS

METHOD = Method(
    name="stego",
    summary="A head that distils feature correspondences within and between images",
    paper="STEGO, Hamilton et al., ICLR 2022",
    trainer=Part(TrainOptions, "unsupseg_cli.methods.stego.train:StegoTrainer"),
    heads={"stego": "unsupseg_cli.methods.stego.network"},
    version="2",
    deviations=DEVIATIONS,
)
