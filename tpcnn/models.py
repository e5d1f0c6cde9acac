"""The three networks of the lab sheet, and what their chapters train them with."""

import keras
from keras import layers

#: Height and width in pixels, and colours, of the images that a network takes in.
IMAGE_SHAPE = (28, 28, 1)
#: How many probabilities it gives back for each.
CLASSES = 10
#: Images per step in each chapter that trains a network, as chosen on the validation set.
BATCH_SIZE = {"fully_connected": 256, "cnn": 128, "fashion": 128}
#: Weight decay of AdamW (Loshchilov and Hutter 2019) in each of them, chosen in the same way.
WEIGHT_DECAY = {"fully_connected": 0.004, "cnn": 0.004, "fashion": 0.1}


def build_fc(units: int = 512, dropout: float = 0.2) -> keras.Model:
    """Return a fully connected network for MNIST: two hidden layers, then softmax.

    While it trains, each image is shifted by up to one pixel in each direction.

    Args:
        units: width of each hidden layer.
        dropout: share of its outputs that dropout sets to zero, in [0, 1).

    Returns:
        A model from images (n, 28, 28, 1) in [0, 1] to probabilities (n, 10).
    """
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            _random_shift(pixels=1),
            layers.Flatten(),
            *_hidden(units, dropout),
            *_hidden(units, dropout),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="fully_connected",
    )


def build_cnn(filters: int = 24, dropout: float = 0.3) -> keras.Model:
    """Return a convolutional network for MNIST: three convolutional blocks, then two dense layers.

    While it trains, each image is shifted by up to two pixels in each direction.

    Args:
        filters: of the first block; each block has twice as many as the one before.
        dropout: share of the outputs that dropout sets to zero, in [0, 1).

    Returns:
        A model from images (n, 28, 28, 1) in [0, 1] to probabilities (n, 10).
    """
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            _random_shift(pixels=2),
            *_convolutional_stack(filters, dropout),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="cnn",
    )


def build_fashion_cnn(filters: int = 24, dropout: float = 0.3) -> keras.Model:
    """Return the convolutional network of `build_cnn` for Fashion-MNIST, with another augmentation.

    While it trains, it sees each image or, as often, its mirror image; digits would not bear that,
    clothes do.

    Args:
        filters: of the first block; each block has twice as many as the one before.
        dropout: share of the outputs that dropout sets to zero, in [0, 1).

    Returns:
        A model from images (n, 28, 28, 1) in [0, 1] to probabilities (n, 10).
    """
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.RandomFlip("horizontal"),
            *_convolutional_stack(filters, dropout),
            layers.Dense(CLASSES, activation="softmax"),
        ],
        name="fashion_cnn",
    )


def _random_shift(pixels: int) -> layers.Layer:
    height, width, _ = IMAGE_SHAPE
    return layers.RandomTranslation(pixels / height, pixels / width, fill_mode="constant")


def _convolutional_stack(filters: int, dropout: float) -> list[layers.Layer]:
    return [
        *_convolutional(filters, kernel_size=5),
        *_convolutional(2 * filters, kernel_size=3),
        layers.Dropout(dropout),
        *_convolutional(4 * filters, kernel_size=3),
        layers.Flatten(),
        *_hidden(256, dropout),
    ]


def _convolutional(filters: int, kernel_size: int) -> list[layers.Layer]:
    # Pooling comes before batch normalisation: a quarter of the numbers is left to normalise.
    return [
        layers.Conv2D(filters, kernel_size, padding="same", use_bias=False),
        layers.MaxPooling2D(),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]


def _hidden(units: int, dropout: float) -> list[layers.Layer]:
    # Batch normalisation adds its own offset, so the dense layer needs no bias.
    return [
        layers.Dense(units, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Dropout(dropout),
    ]
