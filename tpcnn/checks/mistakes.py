"""Mistake, which every check raises; the sections it points to; the student's code, run safely."""

import contextlib
import enum
import functools
import io
import linecache
import re
import sysconfig
import traceback
from pathlib import Path

import tensorflow as tf


class Section(enum.Enum):
    """The sections of the book that explain a mistake: title of the chapter, heading."""

    LOAD = "Preparing the data", "Load"
    NORMALISE = "Preparing the data", "Scale the pixels"
    CHANNEL = "Preparing the data", "Add the channel axis"
    SPLIT = "Preparing the data", "Split"
    SCORES = "The Trainer", "From scores to probabilities"
    LOSS = "The Trainer", "The loss: how wrong is it?"
    GRADIENT = "The Trainer", "The gradient: which way is better?"
    STEP = "The Trainer", "The step"
    LOOP = "The Trainer", "The loop"
    USE = "The Trainer", "Use it"
    MEANS = "Mini-batches and optimizers", "The last batch"
    SHUFFLE = "Mini-batches and optimizers", "Why shuffle?"
    COST = "Mini-batches and optimizers", "What a batch costs"
    STATISTICS = "Batch normalisation", "In prediction: running averages"
    TWO_MODES = "Dropout", "Training and prediction are two different things"
    FULLY_CONNECTED = "A fully connected network", "The network of this book"
    FULLY_CONNECTED_TRAINING = "A fully connected network", "One ingredient at a time"
    CNN = "A convolutional network", "The network"
    CNN_TRAINING = "A convolutional network", "Train"
    FASHION = "Fashion-MNIST", "The network"
    FASHION_TRAINING = "Fashion-MNIST", "Train"
    NAME = "The lab", "Your name"


class Mistake(AssertionError):
    """A mistake that a check has found; its message says what to do, and where to read on.

    Args:
        wrong: what is wrong.
        effect: what that does to training, or what to do.
        section: the section of the book that explains it, a member of ``mistakes.Section``.
    """

    def __init__(self, wrong: str, effect: str, section: Section):
        chapter, heading = section.value
        super().__init__(
            f"Not right yet: {wrong}\n{effect}\nSee the chapter *{chapter}*, section *{heading}*."
        )

    def _render_traceback_(self) -> list[str]:
        # IPython shows these lines in place of a stack trace, of which a student needs nothing.
        return str(self).splitlines()


def blank(what: str, section: Section) -> Mistake:
    """Return the mistake of a blank that has not been filled in."""
    return Mistake(
        f"{what} is still blank.",
        "Write your code in place of the dots (`...`), under exactly the names that its cell "
        "gives, and run it. If you have done so, the cell may have stopped with an error, or ended "
        "in a call that returns nothing.",
        section,
    )


def is_blank(error: Exception | None) -> bool:
    """Whether an error is that of a blank; TensorFlow has another use for this type of error."""
    return isinstance(error, NotImplementedError) and "symbolic" not in str(error)


def check(function):
    """Make `function` a check: whatever goes wrong in it ends in one message.

    It computes in full float32: some GPUs round so much that a right result would look wrong.
    """

    @functools.wraps(function)
    def checked(*args, **kwargs):
        rounded = tf.config.experimental.tensor_float_32_execution_enabled()
        tf.config.experimental.enable_tensor_float_32_execution(False)
        try:
            return function(*args, **kwargs)
        except Mistake:
            raise
        except Exception as error:
            raise Mistake(
                f"this check cannot make sense of what it was given ({summary(error)}).",
                "Compare with what the instructions ask for. If you think that your solution is "
                "right, show this message to your teacher.",
                Section.USE,
            ) from error
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(rounded)

    return checked


def run(function, *args, **kwargs):
    """Call the student's `function`, without what it prints; return (result, error or None)."""
    hidden, log = io.StringIO(), tf.get_logger()
    level = log.level
    log.setLevel("ERROR")  # its warnings, such as those on slow code, would bury the message
    with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
        try:
            return function(*args, **kwargs), None
        except Exception as error:
            return None, error
        finally:
            log.setLevel(level)


def raised(what: str, error: Exception, section: Section) -> Mistake:
    """Return the mistake of code that raised `error`: which line it was, and the likely cause."""
    text = summary(error)
    if is_blank(error) or "ellipsis" in text.lower():
        return blank(what, section)
    line = _students_line(error)
    where = f" The line is: {line}" if line else ""
    return Mistake(f"{what} stops with {text}.{where}", _likely_cause(text), section)


# What an error says, and what has most likely caused it; the first that fits counts.
LIKELY_CAUSES = {
    r"multiple values for argument": "Is `self` the first parameter of the method?",
    r"_unique_id|apply_gradients": "apply_gradients takes pairs: zip(gradients, variables). Or "
        "use self.optimizer.apply(gradients, variables).",
    r"'method'|bound method": "A method is named and not called: its parentheses are missing.",
    r"'float' object cannot be interpreted as an integer": "`/` gives a float. To count, use `//`, "
        "or range(0, len(x), batch_size).",
    r"'int' object is not iterable": "A loop needs a range: for epoch in range(epochs).",
    r"KeyError": "The keys of history are loss, accuracy, val_loss and val_accuracy.",
    r"[Yy]ou must call .?compile": "Keras' own fit and evaluate are not for here: write the loop, "
        "and call the network itself, self.model(x, training=...).",
    r"need at least one array": "No batch was made: does the loop run? range(0, len(x), 256).",
    r"reset_states": "In Keras 3 the method is called reset_state(), without the s.",
    r"UnboundLocalError|referenced before assignment|is used before|cannot access local":
        "A value is used before it is computed. In a step the order is: predict, loss, gradient, "
        "then the metrics.",
    r"NameError": "A name is misspelt, is missing its `self.`, or is set in another function.",
    r"has no attribute '(numpy|item)'":
        "Inside @tf.function there are no values yet, only a plan of the computation: leave "
        ".numpy() and .item() out there, and read the metrics in fit.",
    r"SymbolicTensor.*float|float.*SymbolicTensor|symbolic.*numpy|numpy.*symbolic":
        "Inside @tf.function there are no values yet: no float(), no NumPy there. Read the "
        "metrics in fit.",
    r"AttributeError.*NoneType": "Something is None: a function that returns nothing, or a "
        "blank that is not filled in.",
    r"AttributeError": "A name after the dot is misspelt, or is not set in __init__.",
    r"unexpected keyword|positional argument|missing .* argument":
        "A function gets too many or too few arguments. Compare the call with the definition: "
        "fit(x_train, y_train, x_val, y_val, epochs, verbose=True), _train_step(x, y), "
        "_eval_step(x, y), predict(x).",
    r"No gradients provided|None values not supported|NoneType":
        "Something is None: often a gradient, because the loss does not depend on the weights "
        "inside the tape.",
    r"[Ii]ncompatible|[Ss]hape|rank|ndim|dimension|logits and labels|broadcast":
        "Two arrays do not fit. Are the arguments in the right order (labels first, then "
        "predictions)? Are images and labels cut at the same place?",
    r"IndexError|out of range|out of bounds": "An index is larger than the array: look at the "
        "limits of your loop.",
    r"dtype|cannot convert|Cannot convert": "A value has another type than expected: look at "
        "what each variable of this line holds.",
}  # fmt: skip


def _likely_cause(text: str) -> str:
    causes = (cause for pattern, cause in LIKELY_CAUSES.items() if re.search(pattern, text))
    return next(causes, "Read it again, from right to left: what does each name hold?")


def summary(error: Exception) -> str:
    """Return type and text of an error in one line, without TensorFlow's account of itself."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception encountered when calling")]
    kind = type(error).__name__
    if lines and lines[0] == "in user code:":
        # AutoGraph puts its trace first; the error itself, with its type, begins after the files.
        last_file = max(i for i, line in enumerate(lines) if line.startswith("File "))
        text = " ".join(lines[last_file + 2 :])
        kind = ""
    else:
        skipped = ("Graph execution error", "Detected at node", "File ", "<stack traces")
        text = next((line for line in lines if not line.startswith(skipped)), "")
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\].*|Arguments received by .*", "", text).strip(" .")
    text = text if len(text) <= 300 else text[:300] + " ..."
    return f"{kind}: {text}" if kind and text else kind or text


def _students_line(error: Exception) -> str | None:
    """Return the last line of the student's own code that an error passed through."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    # What AutoGraph has rewritten is named in the error's text.
    frames += [
        (name, int(line)) for name, line in re.findall(r'File "(.+?)", line (\d+), in', str(error))
    ]
    for name, number in reversed(frames):
        line = linecache.getline(name, number).strip()
        if line and not _is_library(name):
            return f"`{line}`"
    return None


LIBRARIES = (
    str(Path(__file__).parent),
    str(Path(tf.__file__).parents[1]),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
)


def _is_library(filename: str) -> bool:
    return filename.startswith(LIBRARIES) or "__autograph_generated_file" in filename
