"""The passes, one a file; `ALL` is the catalogue in the order of use."""

from passes.calibrate import Calibrate
from passes.choose_masks import ChooseMasks
from passes.fold_lora import FoldLora
from passes.fold_masks import FoldMasks
from passes.insert_lora import InsertLora
from passes.insert_masks import InsertMasks
from passes.insert_probes import InsertProbes
from passes.prune_channels import PruneChannels
from passes.prune_heads import PruneHeads
from passes.remove_probes import RemoveProbes
from passes.train import Train

ALL = (
    InsertProbes,
    Calibrate,
    InsertMasks,
    ChooseMasks,
    RemoveProbes,
    InsertLora,
    Train,
    FoldLora,
    FoldMasks,
    PruneHeads,
    PruneChannels,
)
