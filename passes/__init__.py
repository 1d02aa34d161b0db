"""The passes, one a file, and the parts of their options; `ALL` is the catalogue in the order of use."""

from passes.allocate_ranks import AllocateRanks as AllocateRanks
from passes.allocate_sparsity import AllocateSparsity as AllocateSparsity
from passes.allocate_values import AllocateValues as AllocateValues
from passes.calibrate import Calibrate as Calibrate
from passes.choose_adapters import ChooseAdapters as ChooseAdapters
from passes.choose_bias import ChooseBias as ChooseBias
from passes.choose_clusters import ChooseClusters as ChooseClusters
from passes.choose_masks import ChooseMasks as ChooseMasks
from passes.choose_neighbours import ChooseNeighbours as ChooseNeighbours
from passes.choose_prompt import ChoosePrompt as ChoosePrompt
from passes.choose_scales import ChooseScales as ChooseScales
from passes.choose_slorb import ChooseSlorb as ChooseSlorb
from passes.choose_tensors import ChooseTensors as ChooseTensors
from passes.fold_adapters import FoldAdapters as FoldAdapters
from passes.fold_bias import FoldBias as FoldBias
from passes.fold_lora import FoldLora as FoldLora
from passes.fold_masks import FoldMasks as FoldMasks
from passes.fold_prompt import FoldPrompt as FoldPrompt
from passes.fold_quantizers import FoldQuantizers as FoldQuantizers
from passes.fold_scales import FoldScales as FoldScales
from passes.insert_adapters import InsertAdapters as InsertAdapters
from passes.insert_bias import InsertBias as InsertBias
from passes.insert_experts import InsertExperts as InsertExperts
from passes.insert_lora import InsertLora as InsertLora
from passes.insert_masks import InsertMasks as InsertMasks
from passes.insert_neighbours import InsertNeighbours as InsertNeighbours
from passes.insert_omission import InsertOmission as InsertOmission
from passes.insert_probes import InsertProbes as InsertProbes
from passes.insert_prompt import InsertPrompt as InsertPrompt
from passes.insert_quantizers import InsertQuantizers as InsertQuantizers
from passes.insert_scales import InsertScales as InsertScales
from passes.insert_slorb import InsertSlorb as InsertSlorb
from passes.merge_experts import MergeExperts as MergeExperts
from passes.pack_dense import PackDense as PackDense
from passes.pack_nm import PackNm as PackNm
from passes.permute_channels import PermuteChannels as PermuteChannels
from passes.prune_channels import PruneChannels as PruneChannels
from passes.prune_experts import PruneExperts as PruneExperts
from passes.prune_heads import PruneHeads as PruneHeads
from passes.prune_hidden import PruneHidden as PruneHidden
from passes.prune_layers import PruneLayers as PruneLayers
from passes.remove_omission import RemoveOmission as RemoveOmission
from passes.remove_probes import RemoveProbes as RemoveProbes
from passes.remove_quantizers import RemoveQuantizers as RemoveQuantizers
from passes.split_linears import SplitLinears as SplitLinears
from passes.train import Train as Train
from sparsify.select.target_shape import Shape as Shape
from sparsify.train.every import Every as Every
from sparsify.train.options import AdamS as AdamS
from sparsify.train.options import ArsSte as ArsSte
from sparsify.train.options import Kl as Kl
from sparsify.train.options import Lors as Lors
from sparsify.train.options import Squared as Squared
from sparsify.train.options import SrSte as SrSte

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
    InsertPrompt,
    ChoosePrompt,
    Train,
    FoldPrompt,
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
    InsertNeighbours,
    ChooseNeighbours,
    SplitLinears,
    RemoveQuantizers,
    FoldQuantizers,
    PackNm,
    PackDense,
)
