"""Codecs: each knows one modality, media tensor <-> latent; their shared convolutional body, front ends and losses."""

from mmldm.codec.audio import AudioCodec
from mmldm.codec.conv_vae import ConvCodec, ConvVAE
from mmldm.codec.image import ImageCodec
from mmldm.codec.mel import LogMel
from mmldm.codec.video import VideoCodec
from mmldm.codec.vocoder import GriffinLim

__all__ = ["AudioCodec", "ConvCodec", "ConvVAE", "GriffinLim", "ImageCodec", "LogMel", "VideoCodec"]
