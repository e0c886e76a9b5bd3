"""The contracts as runnable assertions: what a codec, a conditioner and a denoiser from anywhere must keep."""

from mmldm.testing.codec import Check, check_codec, codec_checks, report
from mmldm.testing.parts import check_conditioner, check_denoiser

__all__ = ["Check", "check_codec", "check_conditioner", "check_denoiser", "codec_checks", "report"]
