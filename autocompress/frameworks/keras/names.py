"""Keras' operations and layers without weights, by what they do to channels. A layer and an operation may share a name."""

MOVES = frozenset(
    {
        *("BroadcastTo", "Concatenate", "Diagonal", "Dsplit", "ExpandDims", "Flatten", "Flip", "Fliplr", "Flipud", "Hsplit"),
        *("Hstack", "Moveaxis", "Permute", "Ravel", "Repeat", "RepeatVector", "Reshape", "Roll", "Split", "Squeeze", "Stack"),
        *("Swapaxes", "Take", "TakeAlongAxis", "Tile", "Transpose", "Unstack", "Vsplit", "Vstack"),
    }
)
SIZED = frozenset({"BroadcastTo", "Reshape", "Split"})
"""Those that remember the sizes of their outputs."""
POINTWISE = frozenset(
    {
        *("Abs", "Absolute", "ActivityRegularization", "Add", "AlphaDropout", "Cast", "Cbrt", "Ceil", "Celu", "Clip", "Copy"),
        *("Cos", "Cosh", "Divide", "DivideNoNan", "Dropout", "ELU", "Elu", "Equal", "Erf", "Exp", "Exp2", "Expm1", "Fabs"),
        *("Floor", "FloorDivide", "Fmax", "Fmin", "GaussianDropout", "GaussianNoise", "Gelu", "Greater", "GreaterEqual"),
        *("HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "Heaviside", "Hypot", "Identity", "Isfinite", "Isinf", "Isnan"),
        *("LeakyReLU", "LeakyRelu", "Less", "LessEqual", "Log", "Log10", "Log1p", "Log2", "LogSigmoid", "Logaddexp"),
        *("LogicalAnd", "LogicalNot", "LogicalOr", "LogicalXor", "Maximum", "Minimum", "Mod", "Multiply", "NanToNum"),
        *("Negative", "NotEqual", "Power", "ReLU", "Reciprocal", "Relu", "Relu6", "Round", "Rsqrt", "SaturateCast", "Selu"),
        *("Sigmoid", "Sign", "Silu", "Sin", "Sinh", "SoftShrink", "Softplus", "Softsign", "SparsePlus", "SparseSigmoid"),
        *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Sqrt", "Square", "Squareplus", "StopGradient"),
        *("Subtract", "Tan", "Tanh", "TanhShrink", "Threshold", "TrueDivide", "Trunc", "Where"),
    }
)
MIXES = frozenset(
    {
        *("All", "Amax", "Amin", "Any", "Argmax", "Argmin", "CountNonzero", "Cumprod", "Cumsum", "LogSoftmax", "Logsumexp"),
        *("Max", "Mean", "Median", "Min", "Norm", "Normalize", "Prod", "Softmax", "Sparsemax", "Std", "Sum"),
        *("UnitNormalization", "Var"),
    }
)
POOLS = frozenset(
    {
        *("AdaptiveAveragePool", "AdaptiveMaxPool", "AveragePool", "CropImages", "MaxPool", "PadImages", "Resize", "Resizing"),
        *(
            f"{name}{rank}D"
            for name in (
                *("AdaptiveAveragePooling", "AdaptiveMaxPooling", "AveragePooling", "Cropping", "GlobalAveragePooling"),
                *("GlobalMaxPooling", "MaxPooling", "UpSampling", "ZeroPadding"),
            )
            for rank in (1, 2, 3)
        ),
    }
)
ACTIVATIONS = frozenset(
    {
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear"),
        *("log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softplus", "softsign"),
        *("sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink", "threshold"),
    }
)
"""Functions that work element by element."""
