"""Settings to plans: the scales, and the roles that data sets play in them."""

SCALES = ("smoke", "demo", "cpu", "gpu", "thesis")
#: Those with real data, whose results are in Git.
REAL = ("cpu", "gpu", "thesis")
ROLES = ("cifar10", "cifar100", "cinic10", "imagenet")
#: The role of the runs that ask whether excitation does anything; some scales have none of them.
EVIDENCE = "evidence"
