"""The names that options offer, as the library has them: here without its imports.

Parsers are made before torch is imported, which takes seconds. A test holds these names equal to
those of the library.
"""

STORIES = (
    "gmm",
    "vae",
    "vade",
    "dmvae",
    "me",
    "deepmoe",
    "hierarchicalme",
    "gmmmoe",
    "vademoe",
    "dvmoe",
    "hierarchicaldmvae",
    "hierarchicaldvmoe",
)
WITHOUT_TREES = tuple(name for name in STORIES if name != "hierarchicalme")
FAMILIES = (
    "normal",
    "normal-scalar",
    "normal-full",
    "student-t",
    "categorical",
    "bernoulli",
    "binomial",
    "poisson",
)
OF_FORMULAS = (
    "normal",
    "normal-full",
    "student-t",
    "poisson",
    "bernoulli",
    "binomial",
    "categorical",
)
CONTEXTS = ("x", "z")
LIKELIHOODS = ("normal", "normal-heteroscedastic", "bernoulli", "continuous-bernoulli")
COVARIANCES = ("full", "diagonal", "tied")
LOSSES = ("marginal", "categorical-kl", "relaxed")
WEIGHT_TYPES = ("replication", "sampling")
STARTS = ("random", "keep", "autoencoder", "tsne", "umap")
