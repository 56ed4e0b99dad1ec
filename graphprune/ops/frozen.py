"""Ops that nothing is cut through, with the reason in words a user understands."""

from __future__ import annotations

from graphprune.rules import frozen_by_design

frozen_by_design("draws random numbers, and another size would draw others",
                 "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                 "Multinomial")  # fmt: skip
frozen_by_design("counts positions", "EyeLike")
frozen_by_design("how many positions it finds is only known when it runs", "NonZero")
frozen_by_design("compares whole slices, so each index decides which are equal", "Unique")
frozen_by_design("answers with positions of boxes and classes", "NonMaxSuppression")
frozen_by_design("computes a window or filter bank from its size",
                 "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")  # fmt: skip
frozen_by_design("compares scores with class labels (training)",
                 "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")  # fmt: skip
frozen_by_design("decodes an image file", "ImageDecoder")
frozen_by_design("works on text",
                 "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer")  # fmt: skip
frozen_by_design("changes or makes a sequence whose tensors are not followed one by one",
                 "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap")  # fmt: skip
frozen_by_design("keeps a state of keys and values from step to step", "LinearAttention")
frozen_by_design("became an initializer when the file was loaded; one that is left holds text", "Constant")
