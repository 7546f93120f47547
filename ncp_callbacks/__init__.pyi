from . import analysis as analysis
from . import models as models
from . import plots as plots
from . import runs as runs
from .callbacks import *
from .checkpoints import Replay as Replay
from .checkpoints import replay as replay
from .held_out import HeldOutBatch as HeldOutBatch
from .instrument.errors import ModelError as ModelError
from .instrument.errors import NothingToObserve as NothingToObserve
from .integrations import ReportCallback as ReportCallback
from .interpret import Interpretation as Interpretation
from .interpret import StateTransitionAnalyzer as StateTransitionAnalyzer
from .interpret import analyze_backbone as analyze_backbone
from .interpret import analyze_time_sensitivity as analyze_time_sensitivity
from .interpret import compute_temporal_importance as compute_temporal_importance
from .interpret import interpret_model as interpret_model
from .interpret import visualize_hidden_states as visualize_hidden_states
from .monitor import Monitor as Monitor
from .observation import Activations as Activations
from .observation import Need as Need
from .observation import Observation as Observation
from .observation import Trajectory as Trajectory
from .plots import *
from .records import Array as Array
from .records import Embedding as Embedding
from .records import Figure as Figure
from .records import Histogram as Histogram
from .records import Note as Note
from .records import Picture as Picture
from .records import Record as Record
from .records import Scalar as Scalar
from .records import Text as Text
from .runs.compare import compare_runs as compare_runs
from .runs.comparison import Comparison as Comparison
from .schedules import Schedule as Schedule
from .schedules import ScheduleLike as ScheduleLike
from .schedules import at as at
from .schedules import every as every
from .schedules import log_spaced as log_spaced
from .writers.base import Writer as Writer
from .writers.memory import MemoryWriter as MemoryWriter
from .writers.tensorboard import TensorBoardWriter as TensorBoardWriter

__version__: str
