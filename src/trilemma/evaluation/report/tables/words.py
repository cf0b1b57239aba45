"""What the report says to a reader who has never seen the project."""

from __future__ import annotations

from trilemma.figures.html import Html, element

SUMMARY = element(
    "p",
    "A model that draws images is asked for three things at once: each image should be good (",
    element("strong", "quality"),
    "), all that the data holds should appear (",
    element("strong", "coverage"),
    "), and drawing should be fast (",
    element("strong", "speed"),
    "). Each known kind of model gives up some of one for the others: that is the generative learning trilemma "
    "(Xiao, Kreis and Vahdat, 2022). This page measures the three by one protocol. Each number stands beside what real images "
    "score that the models never saw, since no score is perfect with finitely many images; and each line of the table leads "
    "to the full protocol that made it.",
)

SMOKE = element(
    "p",
    element("span", "smoke", class_="badge"),
    " These rows have too few images to compare models by: they show that everything runs. The bias of a Fréchet distance "
    "of so few images is larger than the differences between models.",
    class_="note",
)

TABLE = element(
    "p",
    "One line a setting. ↓ less is better, ↑ more is better. Numbers in brackets lead to the protocol of the line. A dash was "
    "not measured. “se” is a standard error; ± is the standard deviation over repetitions, and the range "
    "below it Student’s 95 % interval for their mean, from three repetitions on; what all repetitions agree on has neither.",
)

_MEANINGS = (
    ("FD", "Fréchet distance between the features of samples and of training images: how far the two sets lie apart as a "
     "whole. The features are those of a small classifier named in the brackets; another classifier gives other numbers, so "
     "this is not the FID of the literature."),
    ("KID", "Kernel distance on the same features, without bias in the number of images."),
    ("Precision", "Share of samples that lie among real images: quality, image by image."),
    ("Recall, coverage", "Share of real images that samples reach: variety. Coverage is the one that outliers deceive less."),
    ("Label accuracy", "How often a classifier finds in a sample the label that was asked for."),
    ("Authenticity", "Share of samples that are no closer to a training image than that image is to its own neighbour. Far "
     "below the value of real images, the model repeats its training set."),
    ("Likelihood", "Bits that the model needs for a test image, per dimension: “=” exact, “≤” the true value is no larger, "
     "“~” an estimate. Only equal units compare."),
    ("Calls", "Evaluations of the network for one image; guidance by two branches counts twice."),
    ("Latency, images/s", "Wall-clock time for a single image, decoder included, and the rate at the best batch size."),
    ("Memory", "The most that was held at once: on a CPU of the whole program, on an accelerator of tensors."),
    ("Floor, ceiling", "What held-out real images score with as many images: distances cannot be expected to fall below the "
     "floor, nor shares to stay above the ceiling. A precision above it means that samples are more typical than real images."),
    ("Copycat", "Training images as if they were samples. Its distances are as good as can be and its authenticity must be "
     "near 0: if it were not, the measurement would miss copying."),
)  # fmt: skip

COLUMNS = element(
    "details",
    element("summary", "What the columns and the last lines mean"),
    element("table", element("tbody", *(
        element("tr", element("th", name, scope="row"), element("td", text)) for name, text in _MEANINGS
    )), class_="pairs"),
)  # fmt: skip

PLOTS = element(
    "p",
    "Each point is a line of the table, labelled with the steps of its sampler where there is room. Bars: for one "
    "measurement 1.96 standard errors where the row states them, for two repetitions from one to the other, for more the "
    "95 % interval of their mean. The dotted stair is the Pareto front: no point is better in both directions.",
)

TWO_STAGE: tuple[Html, ...] = (
    element(
        "p",
        "Such a model first turns images into tokens (the codec) and then learns which tokens go together (the prior). "
        "“Codec” columns compare test images with their own reconstructions. “Oracle” columns score decoded test images as if they "
        "were samples: what a perfect prior would reach with this codec. The distance from there to the samples’ FD is the "
        "prior’s.",
    ),
)

SAMPLES = element(
    "p", "Not chosen: the first images of a seed. Of one seed, all settings of a model start from the same noise."
)

NEIGHBOURS = element(
    "p",
    "The samples that lie closest to the training set, each with the training images that are nearest to it, by the features "
    "and pixel by pixel. Equal images in a column would be copies.",
)

PROTOCOLS = element("p", "Each row in full, as evaluate.py wrote it.")
