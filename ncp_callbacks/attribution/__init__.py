"""Attribute a target to inputs and elapsed time, and summarize the attributions.

A method is one class. Its settings are arguments::

    from ncp_callbacks.attribution import IntegratedGradients

    ncp.GradientAttribution(method=IntegratedGradients(n_steps=32))

A method of your own is a subclass of :class:`AttributionMethod`.
"""

from .base import Attribution, AttributionMaps, AttributionMethod, PassCount
from .expected_gradients import ExpectedGradients
from .gradients import Gradient, InputXGradient, SmoothGrad
from .importance import TemporalImportance, summarize, temporal_importance
from .integrated_gradients import IntegratedGradients
from .occlusion import Occlusion
from .registry import BUILT_IN, DEFAULT_METHOD, MethodName, method_from
from .removal import (
    Agreement,
    FeatureGroup,
    Removal,
    compare,
    compare_blocks,
    feature_groups,
    removal_of,
)
from .segment_integrated_gradients import SegmentIntegratedGradients

__all__ = [
    "BUILT_IN",
    "DEFAULT_METHOD",
    "Agreement",
    "Attribution",
    "AttributionMaps",
    "AttributionMethod",
    "ExpectedGradients",
    "FeatureGroup",
    "Gradient",
    "InputXGradient",
    "IntegratedGradients",
    "MethodName",
    "Occlusion",
    "PassCount",
    "Removal",
    "SegmentIntegratedGradients",
    "SmoothGrad",
    "TemporalImportance",
    "compare",
    "compare_blocks",
    "feature_groups",
    "method_from",
    "removal_of",
    "summarize",
    "temporal_importance",
]
