"""Settings to plans: the scales, and the roles that data sets play in them."""

SCALES = ("smoke", "demo", "cpu", "gpu", "thesis")
#: Those with real data, whose results are in Git.
REAL = ("cpu", "gpu", "thesis")
#: The role of the runs that ask whether excitation does anything; some scales have none of them.
EVIDENCE = "evidence"
#: The role of a folder of one's own, or of a data set of torchvision: the playground's alone.
OWN = "own"
#: Each role's task.
ROLES = {
    "cifar10": "classification",
    "cifar100": "classification",
    "cinic10": "classification",
    "imagenet": "classification",
    "tiny-imagenet": "classification",
    "voc": "segmentation",
    "kinetics": "video",
    "jester": "video",
    EVIDENCE: "classification",
    OWN: "classification",
}
#: What results call a metric, by its name in curves.
METRICS = {"accuracy": "accuracy", "iou": "mean IoU"}
