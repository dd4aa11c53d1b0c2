"""The thesis's models, plain: an excitation is attached afterwards (:mod:`wexlib.attach`).

Building draws from torch's global generator alone, in the order of construction, so one seed gives
one start whatever is attached later. Torchvision is imported only by the models that need it.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wexlib.names import choose


def build(
    name: str, *, classes: int, image_size: int | Sequence[int] | None = None, **options
) -> nn.Module:
    """Build a model by name, for (N, C, H, W) images to (N, classes) scores.

    A model of clips takes (N, C, T, H, W). A segmentation network gives (N, classes, H, W), at the
    images' size; those of torchvision give it as ``out`` of a dictionary.

    Args:
        name: one of :data:`MODELS`, or any classification, segmentation or video model of
            torchvision; of two models of one name (``resnet18``) it is that of :data:`MODELS`.
        classes: number of classes.
        image_size: height and width, or one number for both, for the models whose layers depend on
            it (``mixer``, ``vit``, torchvision's ``vit_*``); convolutional models take any size.
        options: the model's own, as its function in :data:`MODELS` or its class in torchvision.

    Raises:
        ValueError: the name is unknown, or an option unknown or not possible.
        TypeError: torchvision's class does not take an option.
    """
    _positive(classes=classes)
    if name not in MODELS:
        return _torchvision(name, classes, image_size, options)
    allowed = [key for key in inspect.signature(MODELS[name]).parameters if key != "classes"]
    for key in options:
        choose(key, allowed, f"option of the model {name}:")
    if image_size is not None and "image_size" in allowed:
        options["image_size"] = image_size
    return MODELS[name](classes=classes, **options)


def _torchvision(
    name: str, classes: int, image_size: int | Sequence[int] | None, options: dict
) -> nn.Module:
    import torchvision

    kinds = torchvision.models, torchvision.models.segmentation, torchvision.models.video
    known = [name for kind in kinds for name in torchvision.models.list_models(module=kind)]
    summary = f"one of {', '.join(MODELS)}, or a model of torchvision for images or clips"
    choose(name, [*MODELS, *known], "model", summary=summary)
    if image_size is not None and name.startswith("vit_"):
        options = {"image_size": image_size, **options}
    if name in torchvision.models.list_models(module=torchvision.models.segmentation):
        options = {"weights_backbone": None, **options}  # they would be downloaded
    try:
        return torchvision.models.get_model(name, num_classes=classes, **options)
    except TypeError as error:
        raise TypeError(f"torchvision's model {name} refuses its options: {error}") from None


def _positive(**sizes: object) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}: expected a whole number, 1 or more")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise ValueError(f"image_size is {size!r}: expected one number, or a height and a width")
    for side in pair:
        _positive(image_size=side)
    return pair


# --- Residual networks. Names of layers are torchvision's. ---------------------------------------


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The shortcut: the identity (None), or a 1×1 projection where the shape changes."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))), two k×k convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, kernel: int):
        super().__init__()
        self.conv1 = _conv(inputs, outputs, kernel, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, kernel)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """relu(shortcut(x) + f(x)), f a 1×1, a grouped 3×3 and a 1×1 convolution (Xie et al. 2017)."""

    def __init__(self, inputs: int, outputs: int, *, inner: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = _conv(inputs, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, stride=stride, groups=groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv(inner, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A stem ``conv1``, stages ``layer1``, ``layer2``, …, the mean over space, dropout, ``fc``."""

    def __init__(
        self,
        stem: nn.Conv2d,
        pool: nn.Module,
        stages: Sequence[nn.Module],
        features: int,
        classes: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = pool
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)
        self.stages = len(stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


def _kaiming_fan_out(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / (O·k²)): fan_out is that of the whole weight, also with groups."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnext29(
    *,
    classes: int,
    cardinality: int = 8,
    base_width: int | None = None,
    width: int = 64,
    in_channels: int = 3,
) -> ResNet:
    """ResNeXt-29 for small images (Xie et al. 2017, section 5.2), 8×64d as in the thesis's tables.

    A 3×3 stem of ``width`` channels and three stages of three bottlenecks, strides 1, 2, 2. Stage
    s = 0, 1, 2 has 4·width·2ˢ channels, and cardinality·base_width·2ˢ inside, in ``cardinality``
    groups. 31 convolutions; 34,518,948 parameters at 100 classes.

    At initialization, as in the authors' code: convolutions N(0, 2 / (O·k²)) (kaiming normal,
    fan_out), classifier N(0, 2 / features) (kaiming normal, fan_in), biases 0, batch norms 1 and 0.

    Args:
        classes: number of classes.
        cardinality: groups of each 3×3 convolution.
        base_width: channels of a group in the first stage; ``width`` unless given.
        width: channels of the stem.
        in_channels: channels of the images.
    """
    base_width = width if base_width is None else base_width
    _positive(cardinality=cardinality, base_width=base_width, width=width, in_channels=in_channels)
    stem, stages, inputs = _conv(in_channels, width, 3), [], width
    for s in range(3):
        shape = {"inner": cardinality * base_width * 2**s, "groups": cardinality}
        outputs, stride = 4 * width * 2**s, 1 if s == 0 else 2
        blocks = [Bottleneck(inputs, outputs, stride=stride, **shape)]
        blocks += [Bottleneck(outputs, outputs, stride=1, **shape) for _ in range(2)]
        stages.append(nn.Sequential(*blocks))
        inputs = outputs
    model = ResNet(stem, nn.Identity(), stages, inputs, classes)
    _kaiming_fan_out(model)
    nn.init.kaiming_normal_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    return model


def _resnet18(
    stem: nn.Conv2d, pool: nn.Module, classes: int, width: int, kernel: int, dropout: float = 0.0
) -> ResNet:
    stages, inputs = [], width
    for s in range(4):
        outputs, stride = width * 2**s, 1 if s == 0 else 2
        first = BasicBlock(inputs, outputs, stride=stride, kernel=kernel)
        stages.append(nn.Sequential(first, BasicBlock(outputs, outputs, stride=1, kernel=kernel)))
        inputs = outputs
    return ResNet(stem, pool, stages, inputs, classes, dropout)


def resnet18(
    *,
    classes: int,
    width: int = 64,
    kernel: int = 3,
    in_channels: int = 3,
    dropout: float = 0.0,
) -> ResNet:
    """ResNet-18 (He et al. 2016) with a stem for small images: 3×3, stride 1, no pooling.

    Stages of two basic blocks with width, 2, 4, 8·width channels, strides 1, 2, 2, 2. Starts as
    torch starts its layers. 20 convolutions; 11,173,962 parameters at 10 classes, 59,998,282 with
    ``kernel=7``.

    Args:
        classes: number of classes.
        width: channels of the stem and the first stage.
        kernel: side of the blocks' convolutions, odd; the stem keeps 3.
        in_channels: channels of the images.
        dropout: probability with which a feature before the classifier is zeroed in training.

    Raises:
        ValueError: a size below 1, an even kernel, or a dropout outside 0 to 1.
    """
    _positive(width=width, kernel=kernel, in_channels=in_channels)
    if kernel % 2 == 0:
        raise ValueError(
            f"kernel is {kernel}: expected an odd number, which keeps the image's size"
        )
    return _resnet18(_conv(in_channels, width, 3), nn.Identity(), classes, width, kernel, dropout)


def resnet18_imagenet(*, classes: int, width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-18 as torchvision's: a 7×7 stem of stride 2, then a 3×3 max pool of stride 2.

    Convolutions start from N(0, 2 / (O·k²)), the rest as torch starts its layers. 11,689,512
    parameters at 1000 classes; its ``state_dict`` fits torchvision's at width 64. An image of 32
    or less in height and width is one pixel in the last stage, where training needs a batch of 2.

    Args:
        classes: number of classes.
        width: channels of the stem and the first stage.
        in_channels: channels of the images.
    """
    _positive(width=width, in_channels=in_channels)
    stem = _conv(in_channels, width, 7, stride=2)
    pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    model = _resnet18(stem, pool, classes, width, kernel=3)
    _kaiming_fan_out(model)
    return model


def resnet18_3d(*, classes: int, width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-18 for clips (N, C, T, H, W) (Hara et al. 2018): every k×k becomes k×k×k.

    The stem is 3×7×7 of stride 1, 2, 2 over time, rows and columns, then comes a 3×3×3 max pool of
    stride 2; the stages halve time as they halve space. Starts as torch starts its layers.
    33,371,472 parameters at 400 classes, as torchvision's ``r3d_18``, which has no pool.

    Args:
        classes: number of classes.
        width: channels of the stem and the first stage.
        in_channels: channels of the frames.
    """
    _positive(width=width, in_channels=in_channels)
    model = _resnet18(_conv(in_channels, width, 7), nn.MaxPool2d(3, 2, 1), classes, width, kernel=3)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in THREE_D:
                setattr(module, name, THREE_D[type(child)](child))
    model.conv1 = nn.Conv3d(in_channels, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    return model


def _conv3d(conv: nn.Conv2d) -> nn.Conv3d:
    size = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    return nn.Conv3d(conv.in_channels, conv.out_channels, *size, bias=False)


#: What a layer for images becomes for clips.
THREE_D: dict[type, Callable[[nn.Module], nn.Module]] = {
    nn.Conv2d: _conv3d,
    nn.BatchNorm2d: lambda norm: nn.BatchNorm3d(norm.num_features),
    nn.MaxPool2d: lambda pool: nn.MaxPool3d(pool.kernel_size, pool.stride, pool.padding),
    nn.AdaptiveAvgPool2d: lambda pool: nn.AdaptiveAvgPool3d(pool.output_size),
}


def fcn(*, classes: int, width: int = 64, pool: bool = True, in_channels: int = 3) -> nn.Module:
    """A fully convolutional network (Long et al. 2015): torchvision's head on our ResNet-18.

    The backbone is :func:`resnet18_imagenet`, its last two stages dilated by 2 and 4 in place of
    their strides, as torchvision's: it sees one place in eight pixels. The scores are interpolated
    to the images' size, (N, classes, H, W).

    Args:
        classes: number of classes, with the background.
        width: channels of the backbone's first stage.
        pool: false leaves the max pool out, for small images: one place in four pixels then.
        in_channels: channels of the images.
    """
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    class Scores(FCN):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)["out"]

    backbone = resnet18_imagenet(classes=classes, width=width, in_channels=in_channels)
    if not pool:
        backbone.maxpool = nn.Identity()
    for stage, dilation in ((backbone.layer3, 2), (backbone.layer4, 4)):
        for conv in (m for m in stage.modules() if isinstance(m, nn.Conv2d)):
            conv.stride = 1, 1
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = dilation, dilation
    return Scores(IntermediateLayerGetter(backbone, {"layer4": "out"}), FCNHead(8 * width, classes))


# --- Models on patches ---------------------------------------------------------------------------


def _patches(image_size: int | Sequence[int], patch: int) -> tuple[int, int, int]:
    """Height, width and the number of patches."""
    _positive(patch=patch)
    height, width = _pair(image_size)
    if height % patch or width % patch:
        raise ValueError(
            f"an image of {height}×{width} has no whole number of patches of {patch}×{patch}: "
            "choose a patch that divides both sides"
        )
    return height, width, (height // patch) * (width // patch)


class MixerBlock(nn.Module):
    """x + token_mixing(norm1(x)), then y + channel_mixing(norm2(y)), on (N, tokens, dim)."""

    def __init__(self, tokens: int, dim: int, token_hidden: int, channel_hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mixing = nn.Sequential(
            nn.Conv1d(tokens, token_hidden, 1), nn.GELU(), nn.Conv1d(token_hidden, tokens, 1)
        )
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mixing = nn.Sequential(
            nn.Linear(dim, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(self.norm1(x))
        return x + self.channel_mixing(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021) at the size of the thesis's section 6.4.

    Patches are embedded to ``dim``; ``depth`` blocks mix tokens and then channels, each by a
    two-layer perceptron with GELU after a layer norm and around it a skip; then a layer norm, the
    mean over tokens, and a linear head. Starts as torch starts its layers. 1,819,530 parameters at
    10 classes.

    Token mixing is ``nn.Conv1d`` of kernel 1, as in the authors' code, the rest ``nn.Linear``: so
    ``where=nn.Linear`` selects the 14 layers that the authors excited (embedding, 2 a block, head),
    and ``where=(nn.Linear, nn.Conv1d)`` all 26.

    Args:
        classes: number of classes.
        image_size: height and width, or one number for both.
        patch: side of a patch; it divides both sides of the image.
        dim: width of a token.
        depth: number of blocks.
        token_hidden: hidden width of token mixing; 4 × tokens unless given.
        channel_hidden: hidden width of channel mixing; dim / 2 unless given.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        *,
        classes: int,
        image_size: int | Sequence[int] = 32,
        patch: int = 4,
        dim: int = 512,
        depth: int = 6,
        token_hidden: int | None = None,
        channel_hidden: int | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        height, width, tokens = _patches(image_size, patch)
        _positive(dim=dim, depth=depth, in_channels=in_channels)
        token_hidden = 4 * tokens if token_hidden is None else token_hidden
        channel_hidden = max(dim // 2, 1) if channel_hidden is None else channel_hidden
        _positive(token_hidden=token_hidden, channel_hidden=channel_hidden)
        self.shape, self.patch = (in_channels, height, width), patch
        self.embed = nn.Linear(patch * patch * in_channels, dim)
        self.blocks = nn.Sequential(
            *(MixerBlock(tokens, dim, token_hidden, channel_hidden) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"images have shape {tuple(x.shape[1:])}: this Mixer was built for {self.shape}"
            )
        # (N, C, H, W) -> (N, tokens, p·p·C): within a patch by row, column, channel.
        p = self.patch
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1)
        x = self.embed(x.flatten(3).flatten(1, 2))
        return self.head(self.norm(self.blocks(x)).mean(1))


def vit(
    *,
    classes: int,
    image_size: int | Sequence[int] = 32,
    patch_size: int = 4,
    num_layers: int = 6,
    num_heads: int = 8,
    hidden_dim: int = 512,
    mlp_dim: int = 512,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """Torchvision's VisionTransformer (Dosovitskiy et al. 2021) at the size of small images.

    Options are those of torchvision's class; the image may be oblong here. Starts as torchvision
    starts it, with a head of zeros.
    """
    from torchvision.models import VisionTransformer

    height, width, tokens = _patches(image_size, patch_size)
    _positive(num_layers=num_layers, num_heads=num_heads, hidden_dim=hidden_dim, mlp_dim=mlp_dim)
    if hidden_dim % num_heads:
        raise ValueError(
            f"hidden_dim {hidden_dim} is not a multiple of num_heads {num_heads}: change either"
        )

    class OblongTransformer(VisionTransformer):
        def _process_input(self, x: Tensor) -> Tensor:
            if x.shape[2:] != (height, width):
                raise ValueError(
                    f"images are {x.shape[2]}×{x.shape[3]}: this ViT was built for {height}×{width}"
                )
            return self.conv_proj(x).flatten(2).transpose(1, 2)

    model = OblongTransformer(
        image_size=patch_size,
        patch_size=patch_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        mlp_dim=mlp_dim,
        dropout=dropout,
        attention_dropout=attention_dropout,
        num_classes=classes,
    )
    # One position for each patch and one for the class token, drawn as torchvision draws them.
    model.seq_length = tokens + 1
    positions = torch.empty(1, model.seq_length, hidden_dim).normal_(std=0.02)
    model.encoder.pos_embedding = nn.Parameter(positions)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnext29": resnext29,
    "resnet18": resnet18,
    "resnet18_imagenet": resnet18_imagenet,
    "resnet18_3d": resnet18_3d,
    "fcn": fcn,
    "mixer": Mixer,
    "vit": vit,
}
