"""The thesis's block diagrams, each drawn by a short function.

Blue stacks are weights, green ones feature maps; orange boxes have parameters, red ones are
excited. In a circle, × and + broadcast and σ is the logistic function. Shapes: O filters of I
input channels, k×k kernels; C channels of H×W maps.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from study.figures.drawing import SIZE, Diagram, Node

MLP = ("net|V₁", "ReLU", "net|V₂")


def _weight(name: str, shape: str = "O×I×k×k") -> str:
    return f"weight|{name}\n{shape}"


def _map(name: str) -> str:
    return f"map|{name}\nC×H×W"


def _gate(d: Diagram, source: Node, *branch: str, result: str) -> list[Node]:
    """source × branch(source) = result; the nodes of the branch, of × and of the result."""
    nodes = d.row(*branch, at=(source.x + 0.25, source.y + 0.85))
    d.arrow(source, nodes[0], "|-")
    times = d.place("×", max(nodes[-1].x + nodes[-1].w, source.x + source.w) + 0.3, source.y)
    d.arrow(source, times)
    d.arrow(nodes[-1], times, "-|")
    return [*nodes, *d.row(times, result)]


def _gates(title: str, first: str, *steps: tuple[Sequence[str], str]) -> Figure:
    """A tensor that is gated once for each step: the branch that makes a gate, and the result."""
    d = Diagram(title)
    node = d.place(first, 0, 0)
    for branch, result in steps:
        *_, node = _gate(d, node, *branch, result=result)
    return d.figure()


def working_principle() -> Figure:
    d = Diagram("Figure 1.1. Weight excitation: in training, and after it")
    excitation = "net|excitation: a gate\nfor W, made from W"
    row = d.row("weight|W\nlearned", excitation, "weight|W′\nexcited", at=(0, 1.1))
    folded = d.place("weight|W′\nexcited", row[-1].x + 3.3, 1.1)
    for top, text in ((row, "training"), ([folded], "inference: folded once, plain layers")):
        convolution = d.place("convolution", top[-1].x, 0)
        x = d.place("map|x\ninput", convolution.x - 1.1, 0)
        d.arrow(top[-1], convolution)
        d.frame([*top, *d.row(x, convolution, "map|y\noutput")], text)
    return d.figure()


def pruning_pipeline() -> Figure:
    d = Diagram("Figure 2.2. Train, prune, train on")
    steps = ["train\nthe connections", "prune\nthe unimportant", "train\nwhat is left"]
    _, prune, retrain = d.row(*steps, gap=0.5)
    d.arrow(retrain, prune, "|-|", -0.55)
    d.note((prune.x + retrain.x) / 2, -0.68, "again, until accuracy falls")
    return d.figure()


def se_block() -> Figure:
    title = "Figure 2.3. Squeeze and excitation on a feature map"
    return _gates(title, _map("X"), (["mean over\nH, W", *MLP, "σ"], _map("X′")))


def cbam_block() -> Figure:
    title = "Figure 2.4. CBAM on a feature map: channels first, then space"
    channel = ["net|channel attention:\npool over H, W, MLP, σ"]
    space = ["net|spatial attention:\npool over C, 7×7, σ"]
    return _gates(title, _map("X"), (channel, _map("X₁")), (space, _map("X′")))


def triplet_block() -> Figure:
    title = "Figure 2.5. Triplet attention on a feature map"
    return _triplet(title, _map("X"), _map("X′"), "HWC", "net|conv 7×7,\nnorm")


def triplet_on_weights() -> Figure:
    title = "Figure 3.6. Triplet attention on a weight: rotate, pool, rotate back"
    return _triplet(title, _weight("Ŵ"), _weight("Ŵ′"), ("rows", "columns", "I"), "net|conv k×k")


def _triplet(title: str, x: str, out: str, axes: Sequence[str], conv: str) -> Figure:
    """Three branches, each with one of the axes in the place of channels, the last of ``axes``."""
    d = Diagram(title)
    source = d.place(x, 0, 0)
    ends = []
    for y, axis in zip((1.1, 0, -1.1), axes, strict=True):
        turn = "as it is" if axis == axes[-1] else f"exchange\n{axes[-1]} and {axis}"
        branch = [turn, f"max, mean\nover {axis}", conv, "σ", "×"]
        turned, *_, times = d.row(*branch, at=(source.w + 0.3, y))
        d.arrow(source, turned, "|-" if y else "-")
        d.arrow(turned, times, "|-|", y + 0.45)
        ends.append(times)
    right = max(end.x for end in ends) + 0.75
    ends[:2] = [d.row(end, d.place("exchange\nback", right, end.y))[1] for end in ends[:2]]
    mean, _ = d.row("mean", out, at=(right + 0.6, 0))
    for end in ends:
        d.arrow(end, mean, "-|" if end.y else "-")
    return d.figure()


def location_excitation() -> Figure:
    d = Diagram("Figure 2.7. Location-based weight excitation: SE, its input the kernel itself")
    w = d.place(_weight("Ŵ"), 0, 0)
    *se, _, excited = _gate(d, w, "mean\nover k×k", *MLP, "σ", result=_weight("W′"))
    d.frame(se, "SE", pad=0.12)
    _, convolution, _ = d.row(excited, "convolution", "map|y\noutput", gap=0.4)
    d.arrow(d.place("map|x\ninput", convolution.x, 0.85), convolution)
    return d.figure()


def dynamic_convolution() -> Figure:
    d = Diagram("Figure 2.8. Dynamic convolution: K kernels, mixed anew for each image")
    x = d.place("map|x\none image", 0, 0)
    nodes = d.row("mean over\nH, W", *MLP, "softmax:\n$π_1 … π_K$", at=(0.3, 0.9))
    d.arrow(x, nodes[0], "|-")
    mix = d.place(r"$\sum_k\,π_k W_k$", nodes[-1].x, 0)
    d.arrow(nodes[-1], mix)
    d.arrow(d.place(_weight("$W_1 … W_K$", "K×O×I×k×k"), mix.x - 1.4, 0), mix)
    row = d.row(mix, _weight("W(x)"), "convolution", "map|y\noutput")
    d.arrow(x, row[2], "|-|", -0.5)
    return d.figure()


def se_module() -> Figure:
    """On feature maps, in a residual module: the thesis shows the figure of Hu et al. 2018."""
    d = Diagram("Figure 3.1. A residual module, and SE in it")
    x, out, residual = "map|X", "map|X′", "net|residual"
    x0, _, plus, _ = d.row(x, residual, "+", out, down=True)
    d.arrow(x0, plus, "-|-", -0.6)
    x1, _, u = d.row(x, residual, "map|U", at=(1.9, 0), down=True)
    gate = ["mean over H, W", "net|V₁, ReLU, V₂", "σ"]
    gates = d.row(*gate, at=(3.2, u.y - 0.35), down=True, gap=0.2)
    d.arrow(u, gates[0], "-|")
    times = d.place("×", u.x, gates[-1].y)
    _, plus, _ = d.row(times, "+", out, down=True)
    d.arrow(u, times)
    d.arrow(gates[-1], times)
    d.arrow(x1, plus, "-|-", 1.3)
    return d.figure()


def cbam_on_weights() -> Figure:
    title = "Figure 3.2. CBAM on a weight"
    channel = ["net|channel attention:\npool over k×k, MLP, σ"]
    space = ["net|spatial attention:\npool over I, k×k, σ"]
    return _gates(title, _weight("Ŵ"), (channel, _weight("Ŵ₁")), (space, _weight("Ŵ′")))


def cbam_channel() -> Figure:
    title = "Figure 3.3. CBAM's channel attention on a weight"
    row = ["net|V₁, ReLU, V₂:\none MLP for both", "+", "σ", _weight("$A_c$", "O×I×1×1")]
    return _pooled(title, _weight("Ŵ"), ("mean over k×k", "max over k×k"), *row)


def cbam_spatial() -> Figure:
    title = "Figure 3.4. CBAM's spatial attention on a weight"
    row = [_weight("[max; mean]", "O×2×k×k"), "net|conv k×k,\n2 → 1", "σ"]
    row += [_weight("$A_s$", "O×1×k×k")]
    return _pooled(title, _weight("Ŵ₁"), ("max over I", "mean over I"), *row)


def _pooled(title: str, x: str, pools: tuple[str, str], meet: str, *row: str) -> Figure:
    """x pooled in two ways; both go into ``meet``, and on along the row."""
    d = Diagram(title)
    source, *nodes = d.place(x, 0, 0), *d.row(meet, *row, at=(1.95, 0))
    for pool, y in zip(pools, (0.6, -0.6), strict=True):
        node = d.place(pool, 1.15, y)
        d.arrow(source, node, "|-")
        d.arrow(node, nodes[0], "-|")
    return d.figure()


def bam_on_weights() -> Figure:
    d = Diagram("Figure 3.5. BAM on a weight: two branches, one gate")
    w = d.place(_weight("Ŵ"), 0, 0)
    nets = ["net|1×1", *["net|ReLU,\nk×k"] * 2, "net|ReLU,\n1×1"]
    channel = d.row("mean over k×k", *MLP, at=(0.65, 0.6))
    space = d.row(*nets, at=(0.65, -0.6))
    plus = d.place("+", max(channel[-1].x, space[-1].x) + 0.45, 0)
    for branch in (channel, space):
        d.arrow(w, branch[0], "|-")
        d.arrow(branch[-1], plus, "-|")
    _, _, times, add, _ = d.row(plus, "σ", "×", "+", _weight("W′"))
    d.arrow(w, times, "|-|", 0.95)
    d.arrow(w, add, "|-|", -0.95)
    return d.figure()


def modules_compared() -> Figure:
    d = Diagram("Figure 3.7. Four attentions side by side")
    pool = "max, mean\nover H, W"
    gc = ["net|1×1,\nsoftmax over H·W", "weighted mean\nover H, W"]
    triplet = ["rotate:\nH, W, none", "max, mean", "net|conv 7×7, norm", "σ", "×"]
    columns = {
        "(a) SE": ["mean\nover H, W", "net|1×1", "ReLU", "net|1×1", "σ", "×"],
        "(b) CBAM": [pool, "net|MLP", "σ", "×", "max, mean\nover C", "net|conv 7×7", "σ", "×"],
        "(c) GC": [*gc, "net|1×1", "layer norm, ReLU", "net|1×1", "+"],
        "(d) triplet": [*triplet, "rotate back", "mean of three"],
    }
    for i, (name, parts) in enumerate(columns.items()):
        x = 1.9 * i
        d.note(x, 0.25, name, size=SIZE, weight="bold")
        nodes = d.row("map|X", *parts, at=(x, 0), down=True, gap=0.2)
        d.arrow(nodes[-1], d.place("map|X′", x, -5.25))
        meets = [node for node, part in zip(nodes[1:], parts, strict=True) if part in ("×", "+")]
        for source, target in zip([nodes[0], *meets], meets, strict=False):
            d.arrow(source, target, "-|-", x - 0.8)
    return d.figure()


def mixer() -> Figure:
    d = Diagram("Figure 3.10. MLP-Mixer; red: the layers that are magnitude-excited")
    image, embedding = d.row("map|image\npatches", "mark|embedding")
    mixing = ["norm", "token mixing:\n2 layers", "+"]
    mixing += ["norm", "mark|channel mixing:\n2 layers", "+"]
    blocks = d.row(*mixing, at=(embedding.x + embedding.w + 0.6, 0), gap=0.3)
    d.arrow(embedding, blocks[0])
    d.row(blocks[-1], "norm,\nmean", "mark|head", gap=0.5)
    for norm, plus in (blocks[0:3:2], blocks[3:6:2]):
        d.arrow(Node(norm.x - norm.w - 0.17, 0), plus, "|-|", 0.45)
    d.frame(blocks, "N blocks", pad=0.3)
    return d.figure()


def cbam_in_full() -> Figure:
    title = "Figure 4.1. CBAM on a weight, with every map's shape"
    channel = ["mean; max\nover k×k", "net|MLP,\nsum", "σ", _weight("$A_c$", "O×I×1×1")]
    space = ["max; mean\nover I", "net|conv\nk×k", "σ", _weight("$A_s$", "O×1×k×k")]
    return _gates(title, _weight("Ŵ"), (channel, _weight("Ŵ₁")), (space, _weight("W′")))


def novel_module() -> Figure:
    d = Diagram("Figure 4.2. The thesis's module: CBAM, leaky ReLU, skips")
    w = d.place(_weight("Ŵ"), 0, 0)
    channel = "net|$A_c$: mean, max over k×k,\nMLP with leaky ReLU, σ"
    _, s1, plus = _gate(d, w, channel, result="+")
    _, w1 = d.row(plus, _weight("W₁"))
    _, s2, total = _gate(d, w1, "net|$A_s$: max, mean over I,\nconv k×k, σ", result="+")
    d.row(total, _weight("W′"))
    for node, text in ((s1, "S₁"), (s2, "S₂")):
        d.note(node.x + 0.275, 0.13, text)
    d.arrow(w, plus, "|-|", -0.45)
    d.arrow(w1, total, "|-|", -0.45)
    d.arrow(s1, total, "|-|", -0.65)
    return d.figure()


def global_excitation() -> Figure:
    d = Diagram("Figure 4.3. Global excitation: one net that every layer calls")
    shared = d.place("net|one excitation for all layers, of any width:  W′ = W × gate(W)", 0, 0)
    for i, shape in enumerate(("64×3×3×3", "128×64×3×3", "512×256×1×1")):
        x, here = 1.5 * (i - 1), shared._replace(x=1.5 * (i - 1))
        d.arrow(d.place(_weight(f"$W_{i + 1}$", shape), x, 0.85), here)
        d.arrow(here, d.place(_weight(f"$W_{i + 1}′$", shape), x, -0.85))
    return d.figure()
