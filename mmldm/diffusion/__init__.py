"""The mathematics of diffusion: paths, predictions, weights, times, grids, solvers, guidance and known cells; pure torch."""

from mmldm.diffusion.branches import Branch, Branches, Translated, cat_rows, take_rows
from mmldm.diffusion.draws import (
    Box,
    Drawn,
    First,
    KeyCell,
    KnownDraw,
    KnownMixture,
    Nothing,
    Prefix,
    Span,
    Suffix,
    Whole,
)
from mmldm.diffusion.grids import Grid, KarrasGrid, ListGrid, LogSNRGrid, UniformGrid, start_at
from mmldm.diffusion.guidance import APG, CFG, AutoGuidance, ConditionCFG, Guidance
from mmldm.diffusion.known import Context, cells_covered, merge, reference_cells, samples_covered, snap
from mmldm.diffusion.path import DDPM, EDM, Cosine, Linear, Path, expand
from mmldm.diffusion.prediction import EDMPrediction, Eps, Flow, Prediction, V, Z
from mmldm.diffusion.sampling import Denoise, sample
from mmldm.diffusion.solvers import DDIM, Consistency, DPMpp2M, DPMpp2MSDE, Euler, Heun, Solver, Step, UniPC, plan
from mmldm.diffusion.times import (
    LogitNormal,
    LogNormalSigma,
    Mode,
    Shift,
    Times,
    TokenShift,
    Uniform,
    UniformLogSNR,
    permutation,
    stratified,
)
from mmldm.diffusion.weighting import (
    EDMWeight,
    EpsWeight,
    LearnedUncertainty,
    MinSNR,
    Sigmoid,
    SoftMinSNR,
    UnitF,
    Weighting,
    loss_weight,
)

__all__ = [
    "APG", "AutoGuidance", "Box", "Branch", "Branches", "CFG", "ConditionCFG", "Consistency", "Context", "Cosine", "DDIM",
    "DDPM", "DPMpp2M", "DPMpp2MSDE", "Denoise", "Drawn", "EDM", "EDMPrediction", "EDMWeight", "Eps", "EpsWeight", "Euler",
    "First", "Flow", "Grid", "Guidance", "Heun", "KarrasGrid", "KeyCell", "KnownDraw", "KnownMixture", "LearnedUncertainty",
    "Linear", "ListGrid", "LogNormalSigma", "LogSNRGrid", "LogitNormal", "MinSNR", "Mode", "Nothing", "Path", "Prediction",
    "Prefix", "Shift", "Sigmoid", "SoftMinSNR", "Solver", "Span", "Step", "Suffix", "Times", "TokenShift", "Translated",
    "UniPC", "Uniform", "UniformGrid", "UniformLogSNR", "UnitF", "V", "Weighting", "Whole", "Z", "cat_rows", "cells_covered",
    "expand", "loss_weight", "merge", "permutation", "plan", "reference_cells", "sample", "samples_covered", "snap",
    "start_at", "stratified", "take_rows",
]  # fmt: skip
