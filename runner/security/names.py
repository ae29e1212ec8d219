"""The names that a configuration may use. Each one makes numbers, layers or rules of its arguments and reads nothing.

Not listed are whole modules, and classes that read a file, open a socket, or call or import a name in an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN = {
    "runner.losses": """
        ackley beale booth branin dixon_price ellipsoid goldstein_price griewank helical_valley himmelblau keras_model
        lasso_smooth levy linear_regression logistic_regression matrix_factorization matyas mlp poisson_regression
        powell_singular quadratic rastrigin ridge rosenbrock six_hump_camel softmax_regression sphere styblinski_tang
        svm_squared_hinge three_hump_camel wood zakharov
    """,
    "runner.losses.data": "breast_cancer diabetes digits iris synthetic wine",
    "runner.losses.instances": "none random",
    "runner.losses.noise": "gaussian none student_t",
    "runner.guesses": "normal point standard uniform",
    "runner.optimizers": "NoOptimizer",
    "runner.strategies": "minimize tape",
    "runner.strategies.second_order": "newton",
    "runner.strategies.least_squares": "gauss_newton",
    "runner.strategies.scipy_driver": "scipy",
    "runner.executions": "eager graph xla",
    "runner.stopping": "gradient_norm plateau step_size target",
    "runner.tracking": "Mlflow Nothing",
    "runner.pictures.thinning": "none run",
}

# Old names of parts that have moved; users' files and recorded runs still hold these names.
RENAMED = {
    "runner.second_order.newton": "runner.strategies.second_order.newton",
    "runner.least_squares.gauss_newton": "runner.strategies.least_squares.gauss_newton",
    "runner.by_scipy.scipy": "runner.strategies.scipy_driver.scipy",
    "runner.recorder.mlflow": "runner.tracking.Mlflow",
    "runner.tracking.mlflow": "runner.tracking.Mlflow",
    "runner.tracking.none": "runner.tracking.Nothing",
    "runner.portrait.run": "runner.pictures.thinning.run",
    "runner.portrait.none": "runner.pictures.thinning.none",
    "runner.private.Formatter": "runner.security.secrets.Formatter",
    "runner.private.LogFile": "runner.security.secrets.LogFile",
}
# Present names and old names. The config digest uses the old name; a tracker, which has two, is not part of a digest.
FIRST = {new: old for old, new in RENAMED.items()}

# Names in both Keras 3 and tf_keras.
KERAS = {
    "optimizers": "Adadelta Adafactor Adagrad Adam AdamW Adamax Ftrl Lion Nadam RMSprop SGD",
    "optimizers.schedules": """
        CosineDecay CosineDecayRestarts ExponentialDecay InverseTimeDecay PiecewiseConstantDecay PolynomialDecay
    """,
    "losses": """
        BinaryCrossentropy BinaryFocalCrossentropy CategoricalCrossentropy CategoricalFocalCrossentropy CategoricalHinge
        CosineSimilarity Hinge Huber KLDivergence LogCosh MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError
        MeanSquaredLogarithmicError Poisson SparseCategoricalCrossentropy SquaredHinge binary_crossentropy
        binary_focal_crossentropy categorical_crossentropy categorical_focal_crossentropy categorical_hinge cosine_similarity
        hinge huber poisson sparse_categorical_crossentropy squared_hinge
    """,
    "layers": """
        Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D
        AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization Bidirectional Concatenate Conv1D
        Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D
        Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D Cropping2D
        Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GRU GRUCell
        GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D
        GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D GlobalMaxPooling1D GlobalMaxPooling2D
        GlobalMaxPooling3D GroupNormalization Input InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPool1D
        MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply PReLU Permute
        RNN ReLU RepeatVector Reshape SeparableConv1D SeparableConv2D SeparableConvolution1D SeparableConvolution2D SimpleRNN
        SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells Subtract
        TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """,
    "activations": """
        elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax softplus softsign swish tanh
    """,
    "initializers": """
        Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity LecunNormal LecunUniform Ones Orthogonal RandomNormal
        RandomUniform TruncatedNormal VarianceScaling Zeros constant glorot_normal glorot_uniform he_normal he_uniform identity
        lecun_normal lecun_uniform ones orthogonal random_normal random_uniform truncated_normal variance_scaling zeros
    """,
    "regularizers": "L1 L1L2 L2 OrthogonalRegularizer l1 l1_l2 l2 orthogonal_regularizer",
    "constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm max_norm min_max_norm non_neg unit_norm",
}
KERAS_3 = {
    "optimizers": "Lamb LossScaleOptimizer Muon ScheduleFreeAdamW",
    "losses": """
        CTC CategoricalGeneralizedCrossEntropy Circle Dice Tversky categorical_generalized_cross_entropy circle ctc dice tversky
    """,
    "layers": """
        AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D
        AdaptiveMaxPooling3D GroupQueryAttention Identity RMSNormalization ReversibleEmbedding
    """,
    "activations": """
        celu glu hard_shrink hard_silu hard_swish hard_tanh leaky_relu log_sigmoid log_softmax relu6 silu soft_shrink
        sparse_plus sparse_sigmoid sparsemax squareplus tanh_shrink threshold
    """,
    "initializers": "IdentityInitializer OrthogonalInitializer STFT STFTInitializer stft",
}
TF_KERAS = {
    "optimizers.legacy": "Adadelta Adagrad Adam Adamax Ftrl Nadam RMSprop SGD",
    "layers": "LocallyConnected1D LocallyConnected2D",
    "constraints": "RadialConstraint radial_constraint",
}
# Other names of the same functions; `tensorflow.keras` is Keras 3 with the short names of Keras 2.
LONG = {
    "losses": """
        kl_divergence log_cosh mean_absolute_error mean_absolute_percentage_error mean_squared_error
        mean_squared_logarithmic_error
    """
}
SHORT = {
    "losses": "KLD MAE MAPE MSE MSLE kld kullback_leibler_divergence logcosh mae mape mse msle",
    "layers": "ThresholdedReLU",
}
ALL_OF_KERAS = {
    "keras": (KERAS, KERAS_3, LONG),
    "tensorflow.keras": (KERAS, KERAS_3, SHORT),
    "tf_keras": (KERAS, TF_KERAS, LONG, SHORT),
}
OTHERS = {
    "keras": "Input Sequential",
    "tensorflow.compat.v1.train": """
        AdadeltaOptimizer AdagradDAOptimizer AdagradOptimizer AdamOptimizer FtrlOptimizer GradientDescentOptimizer
        MomentumOptimizer ProximalAdagradOptimizer ProximalGradientDescentOptimizer RMSPropOptimizer
    """,
    "optuna.samplers": """
        BruteForceSampler CmaEsSampler GPSampler GridSampler NSGAIIISampler NSGAIISampler PartialFixedSampler QMCSampler
        RandomSampler TPESampler
    """,
    "hydra.experimental.callbacks": "LogJobReturnCallback",
    # Each makes an array from its arguments.
    "numpy": "arange array eye full linspace logspace ones zeros",
    "tensorflow": "constant eye fill linspace ones range zeros",
}


def listed(modules: Mapping[str, str], within: str = "") -> set[str]:
    """Return the full names in a table that lists names by module."""
    return {f"{within}{module}.{name}" for module, names in modules.items() for name in names.split()}


NAMES = frozenset(listed(OWN) | listed(OTHERS)).union(
    *(listed(table, f"{keras}.") for keras, tables in ALL_OF_KERAS.items() for table in tables)
)


def current(name: Any) -> Any:
    """Return the present name of a part that has moved; any other value unchanged."""
    return RENAMED.get(name, name) if isinstance(name, str) else name


def first(plain: Any) -> Any:
    """Return plain data with the old name of each moved `_target_`, so that a move does not change the config digest."""
    if isinstance(plain, Mapping):
        return {
            key: FIRST.get(each, each) if key == "_target_" and isinstance(each, str) else first(each)
            for key, each in plain.items()
        }
    return [first(each) for each in plain] if isinstance(plain, list) else plain


def present(params: Mapping[str, str]) -> dict[str, str]:
    """Return a run's parameters with the present names of parts that have moved."""
    return {key: current(value) if key.endswith("_target_") else value for key, value in params.items()}
