from ..callbacks.backbone_activations.plot import plot_unit_activity as plot_unit_activity
from ..callbacks.dynamics.plot import plot_dynamics as plot_dynamics
from ..callbacks.faithfulness.plot import plot_faithfulness as plot_faithfulness
from ..callbacks.feature_interactions.plot import plot_interactions as plot_interactions
from ..callbacks.feature_removal.plot import plot_feature_removal as plot_feature_removal
from ..callbacks.frame_attribution.plot import plot_frame_strip as plot_frame_strip
from ..callbacks.gradient_attribution.plot import plot_feature_importance as plot_feature_importance
from ..callbacks.gradient_reach.plot import plot_gradient_reach as plot_gradient_reach
from ..callbacks.output_time.plot import plot_output_time as plot_output_time
from ..callbacks.sampling_rate.plot import plot_sampling_rate as plot_sampling_rate
from ..callbacks.sanity_check.plot import plot_sanity as plot_sanity
from ..callbacks.sanity_check.plot import plot_sanity_measures as plot_sanity_measures
from ..callbacks.single_predictions.plot import plot_prediction as plot_prediction
from ..callbacks.state_space.plot import plot_state_space as plot_state_space
from ..callbacks.time_constants.plot import plot_time_constants as plot_time_constants
from ..callbacks.time_constants.plot import (
    plot_time_constants_over_time as plot_time_constants_over_time,
)
from ..callbacks.time_sensitivity.plot import plot_time_sensitivity as plot_time_sensitivity
from ..callbacks.unit_ablation.plot import plot_unit_ablation as plot_unit_ablation
from ..callbacks.unit_meanings.plot import plot_unit_information as plot_unit_information
from ..callbacks.unit_meanings.plot import plot_unit_meanings as plot_unit_meanings
from ..callbacks.wiring.plot import plot_wiring as plot_wiring
from ..cross_validation.plot import plot_cross_validation as plot_cross_validation
from ..findings.plot import plot_overview as plot_overview
from ..plotting.limits import nice_limit as nice_limit
from ..plotting.png import to_png as to_png
