"""Codecs: each knows one modality, media tensor <-> latent; their shared convolutional body, front ends and losses."""

from mmldm.codec.audio import AudioCodec
from mmldm.codec.bigvgan import BigVGAN
from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.hifigan import HiFiGAN
from mmldm.codec.image import ImageCodec
from mmldm.codec.mel import LogMel
from mmldm.codec.mel_codec import MelCodec
from mmldm.codec.video import VideoCodec
from mmldm.codec.vocoder import GriffinLim, Vocoder
from mmldm.codec.vocos import Vocos
from mmldm.codec.waveform import WaveformCodec

__all__ = [
    "AudioCodec",
    "BigVGAN",
    "ConvCodec",
    "ConvVAE",
    "GriffinLim",
    "HiFiGAN",
    "ImageCodec",
    "LogMel",
    "MelCodec",
    "VideoCodec",
    "Vocoder",
    "Vocos",
    "WaveformCodec",
]
