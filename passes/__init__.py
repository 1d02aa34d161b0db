"""The passes, one a file; `ALL` is the catalogue in the order of use."""

from passes.allocate_ranks import AllocateRanks
from passes.allocate_sparsity import AllocateSparsity
from passes.allocate_values import AllocateValues
from passes.calibrate import Calibrate
from passes.choose_adapters import ChooseAdapters
from passes.choose_bias import ChooseBias
from passes.choose_clusters import ChooseClusters
from passes.choose_masks import ChooseMasks
from passes.choose_scales import ChooseScales
from passes.choose_slorb import ChooseSlorb
from passes.choose_tensors import ChooseTensors
from passes.fold_adapters import FoldAdapters
from passes.fold_bias import FoldBias
from passes.fold_lora import FoldLora
from passes.fold_masks import FoldMasks
from passes.fold_quantizers import FoldQuantizers
from passes.fold_scales import FoldScales
from passes.insert_adapters import InsertAdapters
from passes.insert_bias import InsertBias
from passes.insert_experts import InsertExperts
from passes.insert_lora import InsertLora
from passes.insert_masks import InsertMasks
from passes.insert_omission import InsertOmission
from passes.insert_probes import InsertProbes
from passes.insert_quantizers import InsertQuantizers
from passes.insert_scales import InsertScales
from passes.insert_slorb import InsertSlorb
from passes.merge_experts import MergeExperts
from passes.pack_dense import PackDense
from passes.pack_nm import PackNm
from passes.permute_channels import PermuteChannels
from passes.prune_channels import PruneChannels
from passes.prune_experts import PruneExperts
from passes.prune_heads import PruneHeads
from passes.prune_hidden import PruneHidden
from passes.prune_layers import PruneLayers
from passes.remove_omission import RemoveOmission
from passes.remove_probes import RemoveProbes
from passes.remove_quantizers import RemoveQuantizers
from passes.split_linears import SplitLinears
from passes.train import Train

ALL = (
    InsertProbes,
    Calibrate,
    PermuteChannels,
    InsertMasks,
    AllocateSparsity,
    ChooseMasks,
    ChooseClusters,
    InsertBias,
    ChooseBias,
    RemoveProbes,
    ChooseTensors,
    InsertLora,
    AllocateRanks,
    InsertSlorb,
    ChooseSlorb,
    InsertAdapters,
    ChooseAdapters,
    InsertExperts,
    InsertScales,
    AllocateValues,
    InsertQuantizers,
    ChooseScales,
    InsertOmission,
    Train,
    RemoveOmission,
    FoldLora,
    FoldAdapters,
    FoldScales,
    FoldBias,
    FoldMasks,
    PruneHeads,
    PruneChannels,
    PruneExperts,
    MergeExperts,
    PruneLayers,
    PruneHidden,
    SplitLinears,
    RemoveQuantizers,
    FoldQuantizers,
    PackNm,
    PackDense,
)
