"""Latent diffusion for images, audio and video with one core."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmldm.pipeline import Pipeline

__all__ = ["Pipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Pipeline` is imported when it is asked for: `import mmldm` alone stays light."""
    if name == "Pipeline":
        from mmldm.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'mmldm' has no attribute {name!r}")
