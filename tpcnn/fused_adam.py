"""Adam's update of a variable in one pass over the memory.

Keras writes the update as some fifteen operations, each of which reads and writes arrays as large
as the variable. For a network of dense layers that takes longer than its matrix products.
TensorFlow has the same update as one operation.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf


def fuse(optimizer: keras.optimizers.Optimizer) -> None:
    """Have `optimizer`, if it is a plain Adam or AdamW, update each variable in one pass.

    The formula and the state stay those of Keras, so what is saved and loaded stays the same; the
    weights agree to float32 round-off. Any other optimizer is left as it is.
    """
    # The exact types: a subclass may have changed the formula.
    if type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW) and not optimizer.amsgrad:
        optimizer.update_step = functools.partial(_update, optimizer)


def _update(optimizer, gradient, variable, learning_rate):
    if isinstance(gradient, tf.IndexedSlices) or variable.dtype != tf.float32:
        type(optimizer).update_step(optimizer, gradient, variable, learning_rate)
        return
    index = optimizer._get_variable_index(variable)
    step = tf.cast(optimizer.iterations + 1, tf.float32)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=tf.pow(optimizer.beta_1, step),
        beta2_power=tf.pow(optimizer.beta_2, step),
        lr=tf.cast(learning_rate, tf.float32) * _beta_2_rounding(optimizer.beta_2),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=tf.cast(gradient, tf.float32),
    )


def _beta_2_rounding(beta_2: float) -> float:
    """Return the factor for the step that makes up for a rounding.

    TensorFlow takes 1 - beta_2 in float32, Keras in float64. The average of the squares is the
    smaller for it, by this factor squared.
    """
    return math.sqrt(float(np.float32(1) - np.float32(beta_2)) / (1 - beta_2))
