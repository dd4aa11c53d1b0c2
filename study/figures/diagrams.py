"""The thesis's block diagrams, each drawn by a short function.

Blue tensors are weights, green ones feature maps; orange boxes have parameters, red ones are
excited. In a circle, × and + broadcast and σ is the logistic function. Shapes: O filters of I
input channels, k×k kernels; C channels of H×W maps.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from study.figures.drawing import SIZE, Diagram, Node, Part, marked, net, tensor

MLP = (net("V₁"), "ReLU", net("V₂"))
WEIGHT = "O×I×k×k"
MAP = "C×H×W"
AC, AS = "$A_c$", "$A_s$"  # the gates of channels and of space


def _gate(
    d: Diagram, source: Node, branch: Sequence[Part | str], result: Part | str
) -> tuple[list[Node], Node, Node]:
    """source × branch(source) = result; the nodes of the branch, of × and of the result."""
    nodes = d.line(branch, source.x + 0.3, source.y + 0.95)
    d.corner(source, nodes[0])
    times, out = d.line(["×", result], nodes[-1].x + nodes[-1].w + 0.15, source.y)
    d.arrow(source, times)
    d.arrow(nodes[-1], times)
    return nodes, times, out


# --- Chapters 1 and 2 ----------------------------------------------------------------------------


def working_principle() -> Figure:
    d = Diagram("Figure 1.1. Weight excitation: in training, and after it")
    kernel = tensor("W′", "excited")
    w, excitation, excited = d.line(
        [tensor("W", "learned"), net("excitation:\na gate for W,\nmade from W"), kernel], 0, 1.3
    )
    folded = d.place(kernel, excited.x + 3.6, excited.y)
    row = [tensor("x", "input", "map"), "convolution", tensor("y", "output", "map")]
    for top, left, text in (
        (excited, [w, excitation], "training"),
        (folded, [], "inference: folded once, plain layers"),
    ):
        nodes = d.line(row, top.x, 0, centred=1)
        d.arrow(top, nodes[1])
        d.frame([top, *left, *nodes], text)
    return d.figure()


def pruning_pipeline() -> Figure:
    d = Diagram("Figure 2.2. Train, prune, train on")
    steps = ["train\nthe connections", "prune\nthe unimportant", "train\nwhat is left"]
    _, prune, retrain = d.line(steps, 0, 0, gap=0.5)
    d.arrow(retrain, prune, over=-0.6)
    d.text((prune.x + retrain.x) / 2, -0.73, "again, until accuracy falls")
    return d.figure()


def se_block() -> Figure:
    d = Diagram("Figure 2.3. Squeeze and excitation on a feature map")
    x = d.place(tensor("X", MAP, "map"), 0, 0)
    branch = ["mean over\nH, W", *MLP, "σ"]
    _gate(d, x, branch, tensor("X′", MAP, "map"))
    return d.figure()


def cbam_block() -> Figure:
    d = Diagram("Figure 2.4. CBAM on a feature map: channels first, then space")
    return _cbam(d, "X", MAP, "map", "H, W", "C", "7×7")


def cbam_on_weights() -> Figure:
    d = Diagram("Figure 3.2. CBAM on a weight")
    return _cbam(d, "Ŵ", WEIGHT, "weight", "k×k", "I", "k×k")


def _cbam(
    d: Diagram, name: str, shape: str, kind: str, space: str, channel: str, conv: str
) -> Figure:
    x = d.place(tensor(name, shape, kind), 0, 0)
    branch = [net(f"channel attention:\npool over {space}, MLP, σ")]
    _, _, x1 = _gate(d, x, branch, tensor(f"{name}₁", shape, kind))
    branch = [net(f"spatial attention:\npool over {channel}, {conv}, σ")]
    _gate(d, x1, branch, tensor(f"{name}′", shape, kind))
    return d.figure()


def triplet_block() -> Figure:
    d = Diagram("Figure 2.5. Triplet attention on a feature map")
    return _triplet(d, tensor("X", MAP, "map"), "H", "W", "C", "conv 7×7,\nnorm", "map")


def triplet_on_weights() -> Figure:
    d = Diagram("Figure 3.6. Triplet attention on a weight: rotate, pool, rotate back")
    return _triplet(d, tensor("Ŵ", WEIGHT), "rows", "columns", "I", "conv k×k", "weight")


def _triplet(
    d: Diagram, x: Part, first: str, second: str, channel: str, conv: str, kind: str
) -> Figure:
    source = d.place(x, 0, 0)
    ends = []
    for y, axis in ((1.3, first), (0.0, second), (-1.3, None)):
        turn = f"exchange\n{channel} and {axis}" if axis else "as it is"
        pool = f"max, mean\nover {axis or channel}"
        turned, *branch = d.line([turn, pool, net(conv), "σ", "×"], 0.9, y)
        d.arrow(turned, branch[-1], over=y + 0.5)
        ends.append(branch[-1])
        if y:
            d.corner(source, turned)
        else:
            d.arrow(source, turned)
    right = max(end.x for end in ends) + 0.85
    backs = [d.place("exchange\nback", right, end.y) for end in ends[:2]]
    mean, _ = d.line(["mean", tensor(f"{x.text}′", x.shape, kind)], right + 0.7, 0)
    for end, back in zip(ends, backs, strict=False):
        d.arrow(end, back)
    d.arrow(backs[0], mean)
    d.arrow(backs[1], mean)
    d.arrow(ends[2], mean)
    return d.figure()


def location_excitation() -> Figure:
    d = Diagram("Figure 2.7. Location-based weight excitation: SE, its input the kernel itself")
    w = d.place(tensor("Ŵ", WEIGHT), 0, 0)
    branch = ["mean\nover k×k", *MLP, "σ"]
    nodes, _, excited = _gate(d, w, branch, tensor("W′", WEIGHT))
    d.frame(nodes, "SE", mark=True)
    conv, y = d.line(["convolution", tensor("y", "output", "map")], excited.x + 0.8, 0)
    d.arrow(excited, conv)
    x = d.place(tensor("x", "input", "map"), conv.x, 1.2)
    d.arrow(x, conv)
    return d.figure()


def dynamic_convolution() -> Figure:
    d = Diagram("Figure 2.8. Dynamic convolution: K kernels, mixed anew for each image")
    x = d.place(tensor("x", "one image", "map"), 0, 0)
    nodes = d.line(["mean over\nH, W", *MLP, "softmax:\n$π_1 … π_K$"], x.x + 0.3, 1.0)
    d.corner(x, nodes[0])
    row = [r"$\sum_k\,π_k W_k$", tensor("W(x)", WEIGHT), "convolution"]
    mix, _, conv, _ = d.line([*row, tensor("y", "output", "map")], nodes[-1].x, 0, centred=0)
    d.arrow(nodes[-1], mix)
    kernels = d.place(tensor("$W_1 … W_K$", f"K×{WEIGHT}"), mix.x - 1.5, 0)
    d.arrow(kernels, mix)
    d.arrow(x, conv, over=-0.7)
    return d.figure()


# --- Chapter 3 -----------------------------------------------------------------------------------


def se_module() -> Figure:
    """On feature maps, in a residual module: the thesis shows the figure of Hu et al. 2018."""
    d = Diagram("Figure 3.1. A residual module, and SE in it")
    x, out, residual = tensor("X", "", "map"), tensor("X′", "", "map"), net("residual")
    plain = d.line([x, residual, "+", out], 0, 0, down=True)
    d.arrow(plain[0], plain[2], beside=-0.75)
    nodes = d.line([x, residual, tensor("U", "", "map")], 2.1, 0, down=True)
    gate = ["mean over H, W", net("V₁, ReLU, V₂"), "σ"]
    gates = d.line(gate, 3.6, nodes[2].y - 0.4, down=True, gap=0.2)
    d.arrow(nodes[2], gates[0])
    times, plus, _ = d.line(["×", "+", out], 2.1, gates[-1].y + 0.15, down=True)
    d.arrow(nodes[2], times)
    d.arrow(gates[-1], times)
    d.arrow(nodes[0], plus, beside=1.35)
    return d.figure()


def cbam_channel() -> Figure:
    d = Diagram("Figure 3.3. CBAM's channel attention on a weight")
    w = d.place(tensor("Ŵ", WEIGHT), 0, 0)
    pools = [d.place(f"{name} over k×k", 1.2, y) for name, y in (("mean", 0.7), ("max", -0.7))]
    row = [net("V₁, ReLU, V₂:\none MLP for both"), "+", "σ", tensor(AC, "O×I×1×1")]
    mlp, *_ = d.line(row, 2.8, 0, gap=0.4, centred=0)
    for pool in pools:
        d.corner(w, pool)
        d.arrow(pool, mlp)
    return d.figure()


def cbam_spatial() -> Figure:
    d = Diagram("Figure 3.4. CBAM's spatial attention on a weight")
    w = d.place(tensor("Ŵ₁", WEIGHT), 0, 0)
    pools = [d.place(f"{name} over I", 1.2, y) for name, y in (("max", 0.7), ("mean", -0.7))]
    row = [tensor("[max; mean]", "O×2×k×k"), net("conv k×k,\n2 → 1"), "σ"]
    stack, *_ = d.line([*row, tensor(AS, "O×1×k×k")], 2.8, 0, centred=0)
    for pool in pools:
        d.corner(w, pool)
        d.arrow(pool, stack)
    return d.figure()


def bam_on_weights() -> Figure:
    d = Diagram("Figure 3.5. BAM on a weight: two branches, one gate")
    w = d.place(tensor("Ŵ", WEIGHT), 0, 0)
    channel = d.line(["mean over k×k", *MLP], 0.7, 0.65)
    nets = [net("1×1"), *[net("ReLU,\nk×k")] * 2, net("ReLU,\n1×1")]
    space = d.line(nets, 0.7, -0.65)
    d.corner(w, channel[0])
    d.corner(w, space[0])
    ends = ["+", "σ", "×", "+", tensor("W′", WEIGHT)]
    plus, _, times, add, _ = d.line(ends, max(channel[-1].x, space[-1].x) + 0.45, 0)
    d.arrow(channel[-1], plus)
    d.arrow(space[-1], plus)
    d.arrow(w, times, over=1.2)
    d.arrow(w, add, over=-1.2)
    return d.figure()


def modules_compared() -> Figure:
    d = Diagram("Figure 3.7. Four attentions side by side")
    pool = "max, mean\nover H, W"
    gc = [net("1×1,\nsoftmax over H·W"), "weighted mean\nover H, W"]
    triplet = ["rotate:\nH, W, none", "max, mean", net("conv 7×7, norm"), "σ", "×"]
    columns = {
        "(a) SE": ["mean\nover H, W", net("1×1"), "ReLU", net("1×1"), "σ", "×"],
        "(b) CBAM": [pool, net("MLP"), "σ", "×", "max, mean\nover C", net("conv 7×7"), "σ", "×"],
        "(c) GC": [*gc, net("1×1"), "layer norm, ReLU", net("1×1"), "+"],
        "(d) triplet": [*triplet, "rotate back", "mean of three"],
    }
    for i, (name, parts) in enumerate(columns.items()):
        x = 2.05 * i
        d.text(x, 0.2, name, size=SIZE, weight="bold")
        nodes = d.line([tensor("X", "", "map"), *parts], x, 0, down=True, gap=0.2)
        (out,) = d.line([tensor("X′", "", "map")], x, -5.25, down=True)
        d.arrow(nodes[-1], out)
        meets = [node for node, part in zip(nodes[1:], parts, strict=True) if part in ("×", "+")]
        for source, target in zip([nodes[0], *meets], meets, strict=False):
            d.arrow(source, target, beside=x - 0.82)
    return d.figure()


def mixer() -> Figure:
    d = Diagram("Figure 3.10. MLP-Mixer; red: the layers that are magnitude-excited")
    image, embedding = d.line([tensor("image", "patches", "map"), marked("embedding")], 0, 0)
    mixing = ["norm", "token mixing:\n2 layers", "+"]
    mixing += ["norm", marked("channel mixing:\n2 layers"), "+"]
    blocks = d.line(mixing, embedding.x + embedding.w + 0.6, 0, gap=0.25)
    end = d.line(["norm,\nmean", marked("head")], blocks[-1].x + 0.75, 0)
    d.arrow(embedding, blocks[0])
    d.arrow(blocks[-1], end[0])
    for norm, plus in (blocks[0:3:2], blocks[3:6:2]):
        x = norm.x - norm.w - 0.15
        d.path([(x, 0), (x, 0.45), (plus.x, 0.45), plus.face(0, 1)])
    d.frame(blocks, "N blocks", pad=0.3)
    return d.figure()


# --- Chapter 4 -----------------------------------------------------------------------------------


def cbam_in_full() -> Figure:
    d = Diagram("Figure 4.1. CBAM on a weight, with every map's shape")
    w = d.place(tensor("Ŵ", WEIGHT), 0, 0)
    channel = ["mean; max\nover k×k", net("MLP,\nsum"), "σ", tensor(AC, "O×I×1×1")]
    _, _, w1 = _gate(d, w, channel, tensor("Ŵ₁", WEIGHT))
    space = ["max; mean\nover I", net("conv\nk×k"), "σ", tensor(AS, "O×1×k×k")]
    _gate(d, w1, space, tensor("W′", WEIGHT))
    return d.figure()


def novel_module() -> Figure:
    d = Diagram("Figure 4.2. The thesis's module: CBAM, leaky ReLU, skips")
    w = d.place(tensor("Ŵ", WEIGHT), 0, 0)
    _, s1, plus = _gate(d, w, [net(f"{AC}: mean, max over k×k,\nMLP with leaky ReLU, σ")], "+")
    d.text(s1.x + 0.3, 0.13, "S₁")
    d.arrow(w, plus, over=-0.55)
    (w1,) = d.line([tensor("W₁", WEIGHT)], plus.x + 0.45, 0)
    d.arrow(plus, w1)
    _, s2, total = _gate(d, w1, [net(f"{AS}: max, mean over I,\nconv k×k, σ")], "+")
    d.text(s2.x + 0.3, 0.13, "S₂")
    d.arrow(w1, total, over=-0.55)
    d.arrow(s1, total, over=-0.85)
    (out,) = d.line([tensor("W′", WEIGHT)], total.x + 0.45, 0)
    d.arrow(total, out)
    return d.figure()


def global_excitation() -> Figure:
    d = Diagram("Figure 4.3. Global excitation: one net that every layer calls")
    shared = d.place(net("one excitation for all layers, of any width:  W′ = W × gate(W)"), 0, 1.2)
    for i, (shape, x) in enumerate(
        (("64×3×3×3", -1.5), ("128×64×3×3", 0), ("512×256×1×1", 1.5)), 1
    ):
        weight = d.place(tensor(f"$W_{i}$", shape), x, 2.2)
        excited = d.place(tensor(f"$W_{i}′$", shape), x, 0)
        d.path([weight.face(0, -1), (x, shared.y + shared.h)])
        d.path([(x, shared.y - shared.h), excited.face(0, 1)])
    return d.figure()
