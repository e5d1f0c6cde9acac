"""What the lab sheet asks."""

#: The least accuracy on the test set, in [0, 1], by chapter.
REQUIRED_ACCURACY = {"fully_connected": 0.96, "cnn": 0.98, "fashion": 0.90}


def require_accuracy(chapter: str, accuracy: float) -> None:
    """Print that a test accuracy meets the lab sheet's requirement for a chapter.

    Args:
        chapter: a key of `REQUIRED_ACCURACY`.
        accuracy: share of the test images that are classified correctly, in [0, 1].

    Raises:
        AssertionError: the accuracy is below the requirement, or NaN.
        KeyError: the lab sheet requires nothing of such a chapter.
    """
    required = REQUIRED_ACCURACY[chapter]
    comparison = f"{chapter}: test accuracy {accuracy:.2%}, required {required:.0%}"
    if not accuracy >= required:
        raise AssertionError(f"{comparison}: not met.")
    print(f"{comparison}: met.")
